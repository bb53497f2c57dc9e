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


def broker(name: str) -> Path | None:
    """``nats-server`` or ``mosquitto``: the system's, or taken out of its Debian packages without installing them."""
    if (found := shutil.which(name)) is not None:
        return Path(found)
    home = CACHE / "debian"
    unpacked = home / "usr" / "sbin" / name
    if not unpacked.exists() and shutil.which("apt-get") and shutil.which("dpkg-deb"):
        print(f"fetching {name} into {home.relative_to(ROOT)}", file=sys.stderr)
        home.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            quiet = {"cwd": home, "check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.run(["apt-get", "download", *_PACKAGES[name]], timeout=120, **quiet)  # type: ignore[call-overload]
            for package in home.glob("*.deb"):
                subprocess.run(["dpkg-deb", "-x", package, "."], **quiet)  # type: ignore[call-overload]
                package.unlink()
    return unpacked if unpacked.exists() else None


def broker_libraries() -> str:
    """Where libraries unpacked with a broker are, as LD_LIBRARY_PATH has it."""
    return ":".join(str(folder) for folder in (CACHE / "debian" / "usr" / "lib").glob("*-linux-gnu"))


_PACKAGES = {
    "nats-server": ["nats-server"],
    "mosquitto": ["mosquitto", "libcjson1", "libwebsockets17", "libdlt2", "libwrap0", "libev4", "libuv1"],
}


def node() -> str | None:
    """node, if it is there and the SDK is installed (``make npm``)."""
    return shutil.which("node") if SDK.exists() else None
