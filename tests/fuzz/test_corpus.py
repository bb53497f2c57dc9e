"""Every input that a target of the fuzzer started from, or once failed on, passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
KNOWN = [path for path in sorted(CORPUS.glob("*/*")) if path.is_file()]


@pytest.mark.parametrize("name", TARGETS)
def test_what_the_fuzzer_starts_from_passes(name: str) -> None:
    for seed in (*TARGETS[name].seeds, b"", b"\0", b"\n" * 20):
        TARGETS[name].run(seed)


def test_what_once_failed_passes() -> None:
    for path in KNOWN:
        TARGETS[path.parent.name].run(path.read_bytes())
