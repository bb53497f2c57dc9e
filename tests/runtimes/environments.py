"""Environments with the real runtimes in them, made once and kept in ``.cache/runtimes``."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

from tests.commands import ROOT

HERE = Path(__file__).resolve().parent
CACHE = ROOT / ".cache/runtimes"


def python_of(name: str, *, ours: bool = True) -> Path:
    """The interpreter of an environment with what ``requirements-NAME.txt`` pins.

    Args:
        ours: meshlib and what it needs is installed, too.
    """
    pinned = HERE / f"requirements-{name}.txt"
    folder = CACHE / name
    python = folder / "bin/python"
    stamp = folder / ".installed"
    wanted = hashlib.sha256(f"{pinned.read_text()} {ours} {sys.version}".encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        also = ["-e", str(ROOT)] if ours else []
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", pinned, *also],
            check=True,
            timeout=1_800,
        )
        stamp.write_text(wanted)
    return python
