"""The adapter's own tests, against the golden vectors."""

from __future__ import annotations

import subprocess

import pytest

from interop.processes import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.node]


def test_adapter_writes_what_agt_5_writes() -> None:
    tests = sorted((ROOT / "interop" / "agt-adapter" / "test").glob("*.test.mjs"))
    run = subprocess.run(
        ["node", "--test", "--test-reporter=tap", *tests], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, "\n".join(line for line in run.stdout.splitlines() if "not ok" in line)
    assert "# skipped 0" in run.stdout
