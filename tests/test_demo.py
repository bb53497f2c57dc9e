"""``python -m demo``: plays to its end, shows what it promises, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT, environment, running

pytestmark = pytest.mark.slow

DEMO = [sys.executable, "-m", "demo"]


def play(tmp: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        DEMO,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(TMPDIR=str(tmp), **env),
        timeout=180,
        check=False,
    )


def without_node(folder: Path) -> str:
    """A search path on which there is no node."""
    folder.mkdir()
    for name in ("env", "sh"):
        for directory in os.environ["PATH"].split(os.pathsep):
            if (Path(directory) / name).exists():
                (folder / name).symlink_to(Path(directory) / name)
                break
    return str(folder)


@pytest.mark.node
def test_three_runtimes_talk(tmp_path: Path) -> None:
    run = play(tmp_path)
    assert run.returncode == 0, run.stderr
    dids = set(re.findall(r"did:mesh:[0-9a-f]{32}", run.stdout))
    assert len(dids) == 3
    assert "TypeScript SDK 4.0.0" in run.stdout
    assert ", asyncio" in run.stdout
    assert ", trio" in run.stdout
    assert run.stdout.count("accepts the knock of") == 3
    assert run.stdout.count("decrypts the first message: hello") == 3
    assert run.stdout.count("decrypts the answer: hello") == 3


@pytest.mark.node
def test_relay_keeps_ciphertext_only(tmp_path: Path) -> None:
    run = play(tmp_path)
    stored = run.stdout.partition("all that relay.db keeps of it:")[2]
    assert re.search(r"ciphertext +[A-Za-z0-9+/]{50}", stored)
    assert "in no file of relay or registry" in stored
    assert stored.count("this waited for you") == 1
    assert "bob     decrypts what waited: this waited for you" in stored


def test_without_node_the_python_part_runs(tmp_path: Path) -> None:
    run = play(tmp_path, PATH=without_node(tmp_path / "bin"))
    assert run.returncode == 0, run.stderr
    assert "no TypeScript agent: node is not installed" in run.stdout
    assert run.stdout.count("decrypts the first message: hello") == 1
    assert "decrypts what waited" in run.stdout


def test_output_is_plain_where_there_is_no_terminal(tmp_path: Path) -> None:
    assert "\x1b" not in play(tmp_path).stdout


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    assert play(tmp_path).returncode == 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("mesh-")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_interrupted_demo_stops_everything(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with running(DEMO, TMPDIR=str(tmp_path)) as process:
        while "alice" not in process.line():
            pass
        process.signal(number)
        assert process.ended() == code
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("mesh-")]


def test_failure_says_why(tmp_path: Path) -> None:
    """A broken server package: the demo ends at once, non-zero, with the reason."""
    broken = tmp_path / "broken" / "mesh_relay"
    broken.mkdir(parents=True)
    (broken / "__init__.py").touch()
    (broken / "__main__.py").write_text("raise SystemExit('this relay is broken')")
    run = play(tmp_path, PYTHONPATH=str(tmp_path / "broken"))
    assert run.returncode == 1
    assert "the demo failed: relay and registry did not start" in run.stderr
    assert "this relay is broken" in run.stderr
