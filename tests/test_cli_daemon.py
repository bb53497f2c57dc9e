"""``mesh daemon`` and ``mesh ask``, and every command with a daemon and without one, as real processes."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from meshlib.daemon.address import socket_path
from tests.commands import MESH, PATIENCE, Agent, Running, Servers, environment

pytestmark = pytest.mark.slow

ECHO = (sys.executable, "-c", "import sys; print('you said', sys.stdin.read().splitlines()[-1])")


@pytest.fixture
def agent(servers: Servers, tmp_path: Path) -> Callable[[str], Agent]:
    """Makes agents that point at the running servers, each with a home and a name of its own."""

    def make(name: str) -> Agent:
        unique = f"{name}-{tmp_path.parent.name}-{tmp_path.name}"
        return Agent(tmp_path / name, {**servers.variables, "MESH_NAME": unique})

    return make


def name_of(one: Agent) -> str:
    return one.variables["MESH_NAME"]


@contextmanager
def daemon_of(one: Agent, *options: str | Path) -> Iterator[Running]:
    """``mesh daemon --json``, once it listens; ``socket`` is where."""
    with one.starting("daemon", "--json", *options) as process:
        said = process.said()
        assert said["event"] == "listening"
        assert Path(said["socket"]) == store_of(one) / "daemon.sock"
        yield process


def store_of(one: Agent) -> Path:
    return one.home / ".local/share/mesh" / name_of(one)


@contextmanager
def responder_of(one: Agent, *command: str) -> Iterator[Running]:
    with one.starting("respond", "--json", "--allow-everyone", "--", *command) as process:
        assert process.said("err")["event"] == "responding"
        yield process


class TestDaemon:
    def test_commands_use_it(self, agent: Callable[[str], Agent]) -> None:
        alice, bob = agent("alice"), agent("bob")
        with daemon_of(alice), daemon_of(bob):
            sent = alice.mesh("send", name_of(bob), "hello", "--wait", "delivered", "--json")
            assert (sent.code, sent.lines[0]["state"]) == (0, "delivered")
            heard = bob.mesh("listen", "--count", "1", "--json")
            assert heard.lines[0]["payload"] == "hello"
            found = alice.mesh("discover", name_of(bob), "--json")
            assert found.lines[0]["did"] == sent.lines[0]["peer"]
            status = alice.mesh("status", "--json")
            assert status.code == 0
            said = status.lines[0]
            assert said["daemon"]["connected"]
            assert said["daemon"]["did"] == said["identity"]["did"] == heard.lines[0]["from"]
            assert said["identity"]["registered"].startswith("registered")
            assert "connected" in alice.mesh("status").out

    def test_commands_work_without_it(self, agent: Callable[[str], Agent]) -> None:
        alice, bob = agent("alice"), agent("bob")
        with bob.listening("--count", "1") as listener:
            assert alice.mesh("send", name_of(bob), "hello", "--wait", "delivered").code == 0
            assert listener.said()["payload"] == "hello"
        assert alice.mesh("status", "--json").lines[0]["daemon"] is None

    def test_two_commands_at_once(self, agent: Callable[[str], Agent]) -> None:
        alice, bob = agent("alice"), agent("bob")
        with daemon_of(bob), bob.listening() as first, bob.listening() as second, daemon_of(alice):
            for number in range(6):
                assert alice.mesh("send", name_of(bob), str(number)).code == 0
            assert bob.mesh("status").code == 0
            for listener in (first, second):
                listener.signal(signal.SIGINT)
                listener.ended()
            got = [line for listener in (first, second) for line in listener.rest("out")]
            assert len(got) == 6

    def test_ends_in_order(self, agent: Callable[[str], Agent]) -> None:
        alice = agent("alice")
        for number in (signal.SIGTERM, signal.SIGINT):
            with daemon_of(alice) as process:
                process.signal(number)
                assert process.ended() == 0
                assert process.rest("err") == []
                assert not socket_path(store_of(alice)).exists()

    def test_is_stopped_by_a_command(self, agent: Callable[[str], Agent]) -> None:
        alice = agent("alice")
        with daemon_of(alice) as process:
            assert alice.mesh("daemon", "--stop").code == 0
            assert process.ended() == 0
        again = alice.mesh("daemon", "--stop")
        assert again.code == 1
        assert "no daemon listens" in again.complaint

    def test_second_one_says_who_holds_the_identity(self, agent: Callable[[str], Agent]) -> None:
        alice = agent("alice")
        with daemon_of(alice) as process:
            second = alice.mesh("daemon")
            assert second.code == 4
            assert str(process.pid) in second.complaint

    def test_killed_one_leaves_nothing_in_the_way(self, agent: Callable[[str], Agent]) -> None:
        alice, bob = agent("alice"), agent("bob")
        with daemon_of(alice) as process:
            process.signal(signal.SIGKILL)
            process.ended()
        assert socket_path(store_of(alice)).exists()
        with bob.listening("--count", "1") as listener:
            assert alice.mesh("send", name_of(bob), "without").code == 0
            assert listener.said()["payload"] == "without"
        with daemon_of(alice):
            assert alice.mesh("status", "--json").lines[0]["daemon"]["connected"]

    def test_listener_ends_with_it_and_says_so(self, agent: Callable[[str], Agent]) -> None:
        alice = agent("alice")
        with daemon_of(alice) as process, alice.listening() as listener:
            process.signal(signal.SIGTERM)
            assert listener.ended() == 1
            # In the daemon's words, or in ours if its connection ended before they came.
            said = " ".join(listener.rest("err"))
            assert "is stopping" in said or "the daemon has gone" in said

    def test_message_that_a_killed_listener_had_comes_again(self, agent: Callable[[str], Agent]) -> None:
        alice, bob = agent("alice"), agent("bob")
        with daemon_of(bob), daemon_of(alice):
            assert alice.mesh("send", name_of(bob), "x", "--wait", "delivered").code == 0
            code = (
                "import sys, meshlib; c = meshlib.BlockingDaemonClient(sys.argv[1]);"
                "print(c.receive().payload, flush=True); c.receive()"
            )
            victim = subprocess.Popen(
                [sys.executable, "-c", code, str(socket_path(store_of(bob)))],
                stdout=subprocess.PIPE,
                env=environment(),
            )
            with victim:
                assert victim.stdout is not None
                assert victim.stdout.readline() == b"x\n"
                victim.kill()
            again = bob.mesh("listen", "--count", "1", "--json").lines[0]
            assert (again["payload"], again["redelivered"]) == ("x", True)

    def test_policy_is_its_own(self, agent: Callable[[str], Agent]) -> None:
        alice, bob = agent("alice"), agent("bob")
        stranger = "did:mesh:" + "0" * 32
        with daemon_of(bob, "--only", stranger):
            refused = alice.mesh("send", name_of(bob), "let me in", "--wait", "delivered")
            assert refused.code == 3
            narrowed = bob.mesh("listen", "--only", stranger)
            assert narrowed.code == 2
            assert "mesh daemon" in narrowed.complaint

    def test_files_go_both_ways(self, agent: Callable[[str], Agent], tmp_path: Path) -> None:
        alice, bob = agent("alice"), agent("bob")
        (tmp_path / "plan.txt").write_text("the plan")
        with daemon_of(alice), daemon_of(bob, "--incoming", tmp_path / "in"):
            assert alice.mesh("send-file", name_of(bob), tmp_path / "plan.txt").code == 0
            assert [path.read_text() for path in (tmp_path / "in").glob("plan*")] == ["the plan"]


class TestAsk:
    def test_prints_the_answer(self, agent: Callable[[str], Agent]) -> None:
        alice, bob = agent("alice"), agent("bob")
        with responder_of(bob, *ECHO):
            asked = alice.mesh("ask", name_of(bob), "what I say")
            assert (asked.code, asked.out, asked.err) == (0, "you said what I say\n", "")
            piped = alice.mesh("ask", name_of(bob), "--json", stdin=b"piped\n")
            assert piped.lines[0]["content"].strip() == "you said piped"
            states = [line for line in piped.err.splitlines() if '"progress"' in line]
            assert states
            with daemon_of(alice):
                assert alice.mesh("ask", name_of(bob), "again").out == "you said again\n"

    def test_asks_several_at_once(self, agent: Callable[[str], Agent]) -> None:
        alice, bob, carol = agent("alice"), agent("bob"), agent("carol")
        with responder_of(bob, *ECHO), responder_of(carol, "false"):
            for through in (False, True):
                with daemon_of(alice) if through else _nothing():
                    asked = alice.mesh("ask", name_of(bob), "--also", name_of(carol), "hello", "--json")
                    assert asked.code == 3
                    assert [line["asked"] for line in asked.lines] == [name_of(bob)]
                    assert name_of(carol) in asked.err
                    assert "TaskFailed" in asked.err

    def test_answers_cannot_rewrite_the_screen(self, agent: Callable[[str], Agent]) -> None:
        alice, bob = agent("alice"), agent("bob")
        hostile = (sys.executable, "-c", r"print('\x1b[2J\x1b[1;1Howned\nmesh: fine')")
        with responder_of(bob, *hostile):
            asked = alice.mesh("ask", name_of(bob), "hello")
            assert asked.code == 0
            assert "\x1b" not in asked.out
            assert "\\x1b[2J" in asked.out

    def test_unanswered_task_says_how_far_it_came(self, agent: Callable[[str], Agent]) -> None:
        alice, bob = agent("alice"), agent("bob")
        with bob.listening():
            asked = alice.mesh("ask", name_of(bob), "anybody?", "--timeout", "2")
            assert asked.code == 5
            assert "delivered" in asked.complaint

    def test_ctrl_c_calls_the_task_off(self, agent: Callable[[str], Agent]) -> None:
        alice, bob = agent("alice"), agent("bob")
        for through in (False, True):
            with bob.listening("--count", "2") as listener, daemon_of(alice) if through else _nothing():
                with alice.starting("ask", name_of(bob), "wait for it") as asking:
                    request = listener.said()["payload"]
                    asking.signal(signal.SIGINT)
                    assert asking.ended() == 130
                cancel = listener.said()["payload"]
                assert (cancel["type"], cancel["request_id"]) == ("task_cancel", request["request_id"])

    def test_progress_is_drawn_on_a_terminal_and_taken_away(self, agent: Callable[[str], Agent]) -> None:
        alice, bob = agent("alice"), agent("bob")
        slow = (sys.executable, "-c", "import time; time.sleep(1); print('done')")
        with responder_of(bob, *slow):
            ours, theirs = pty.openpty()
            argv = [*MESH, "ask", name_of(bob), "hello"]
            env = environment(**alice.env, TERM="xterm")
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=theirs, stdin=theirs, env=env)
            os.close(theirs)
            out, _ = process.communicate(timeout=PATIENCE)
            drawn = b""
            try:
                while chunk := os.read(ours, 65_536):
                    drawn += chunk
            except OSError:  # how Linux says that the other side has closed the terminal
                pass
            finally:
                os.close(ours)
            assert (process.returncode, out) == (0, b"done\n")
            assert "the agent is working on it" in drawn.decode()

    @pytest.mark.parametrize(
        ("arguments", "stdin"), [((), b""), (("-",), b"\xff"), (("x", "--also", "twice", "--also", "twice"), b"")]
    )
    def test_wrong_calls(self, agent: Callable[[str], Agent], arguments: tuple[str, ...], stdin: bytes) -> None:
        asked = agent("alice").mesh("ask", "bob", *arguments, stdin=stdin)
        assert asked.code == 2
        assert asked.complaint


class TestResponder:
    def test_hosts_the_daemon(self, agent: Callable[[str], Agent]) -> None:
        alice, bob = agent("alice"), agent("bob")
        with responder_of(bob, *ECHO) as responder:
            assert bob.mesh("status", "--json").lines[0]["daemon"]["connected"]
            with bob.listening("--count", "1") as listener:
                assert alice.mesh("send", name_of(bob), '{"n":1}', "--json-payload").code == 0
                assert listener.said()["payload"] == {"n": 1}
            refused = bob.mesh("daemon", "--stop")
            assert refused.code == 2
            assert str(responder.pid) in refused.complaint


@contextmanager
def _nothing() -> Iterator[None]:
    yield
