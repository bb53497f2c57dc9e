"""The programs we compare with, each pinned and installed in a place of its own below .cache/bench/.

Upstream's Python package and the TypeScript SDK are those of :mod:`interop`.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from interop import upstream
from interop.processes import ROOT

CACHE = ROOT / ".cache" / "bench"
REQUIREMENTS = Path(__file__).with_name("requirements-peers.txt")
PEERS = CACHE / "peers"
"""vodozemac, Syndace's libraries, and matplotlib for the pictures."""
SDK = ROOT / "interop" / "node_modules" / "@microsoft" / "agent-governance-sdk"


def peers_python() -> Path | None:
    """The interpreter with the other cryptography libraries; None when they cannot be installed."""
    interpreter, installed = PEERS / "bin" / "python", PEERS / "installed"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    if installed.exists() and installed.read_text() == wanted:
        return interpreter
    print(f"installing peers into {PEERS.relative_to(ROOT)}", file=sys.stderr)
    pip: list[str | Path] = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    with contextlib.suppress(subprocess.SubprocessError, OSError):
        venv.create(PEERS, clear=True, with_pip=True)
        subprocess.run([*pip, "--requirement", REQUIREMENTS], check=True, stderr=subprocess.DEVNULL)
        installed.write_text(wanted)
        return interpreter
    return None


def agt_python() -> Path | None:
    """The interpreter with agentmesh-platform; None when it cannot be installed."""
    with contextlib.suppress(subprocess.SubprocessError, OSError):
        return upstream.python()
    return None


def node() -> str | None:
    """node, if it is there and the SDK is installed (``make npm``)."""
    return shutil.which("node") if SDK.exists() else None
