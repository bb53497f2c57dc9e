"""Runtimes from npm, installed once and kept in ``.cache/runtimes``."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent / ".cache/runtimes"


def program(folder: str, name: str, *, with_node: bool = False) -> Path:
    """A program of one of the folders beside this file that pin packages from npm.

    Args:
        with_node: install and run it with the node that ``node/`` pins instead of the system's.
    """
    pinned, installed = HERE / folder, CACHE / folder
    stamp = installed / ".installed"
    wanted = hashlib.sha256((pinned / "package-lock.json").read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(installed, ignore_errors=True)
        installed.mkdir(parents=True)
        for file in ("package.json", "package-lock.json"):
            shutil.copy(pinned / file, installed / file)
        path = f"{node_folder()}{os.pathsep}{os.environ['PATH']}" if with_node else os.environ["PATH"]
        done = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=installed,
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1_800,
            check=False,
        )
        assert done.returncode == 0, f"npm ci of {folder} failed: {done.stdout[-2000:]}"
        stamp.write_text(wanted)
    return installed / "node_modules/.bin" / name


def node_folder() -> Path:
    """The folder of the pinned node."""
    return program("node", "node").parent
