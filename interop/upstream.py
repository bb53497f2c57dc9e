"""Upstream's relay and registry, from PyPI, in a virtual environment of their own.

Started as its documentation says: `python -m agentmesh.relay` and `python -m agentmesh.registry`. Both take `--host`,
`--port` and `--log-level` (or HOST, PORT, LOG_LEVEL) and keep everything in memory. The packages are pinned in
requirements-upstream.txt; MESH_UPSTREAM_VENV names another place for the environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import subprocess
import sys
import venv
from collections.abc import AsyncIterator
from pathlib import Path

from interop.processes import ROOT, Server

REQUIREMENTS = Path(__file__).with_name("requirements-upstream.txt")
_LISTENING = re.compile(r"running on http://([\d.]+):(\d+)")


def python() -> Path:
    """The interpreter that has upstream installed; installs it on the first use."""
    home = Path(os.environ.get("MESH_UPSTREAM_VENV") or ROOT / ".cache" / "upstream-venv")
    interpreter = home / "bin" / "python"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    installed = home / "installed"
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.exists() or installed.read_text() != wanted:
            print("installing upstream's relay and registry", file=sys.stderr)
            venv.create(home, clear=True, with_pip=True)
            pip: list[str | Path] = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "--requirement", REQUIREMENTS], check=True)
            installed.write_text(wanted)
    return interpreter


@contextlib.asynccontextmanager
async def serving(name: str) -> AsyncIterator[str]:
    """`relay` or `registry` on a free port; yields its address as `host:port`."""
    argv: list[str | Path] = [python(), "-m", f"agentmesh.{name}", "--host", "127.0.0.1", "--port", "0"]
    async with Server.running(f"upstream {name}", argv) as server:
        server.find_address = _uvicorn_address
        host, port = await server.address(patience=30)
        yield f"{host}:{port}"


def _uvicorn_address(line: str) -> tuple[str, int] | None:
    found = _LISTENING.search(line)
    return (found[1], int(found[2])) if found else None


if __name__ == "__main__":
    print(python())
