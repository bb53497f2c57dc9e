"""``mesh trace``, ``mesh top`` and ``mesh status`` as real processes, and what logs of a conversation hold."""

from __future__ import annotations

import base64
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack
import pytest

from meshlib.snapshot import pack_session
from meshlib.store import open_store
from tests.commands import MESH, Agent, Running, Servers, environment, mesh_up

pytestmark = pytest.mark.slow

SECRET = "the eagle lands at midnight 7f3a"


@pytest.fixture
def agent(servers: Servers, tmp_path: Path) -> Callable[[str], Agent]:
    """Makes agents that point at the running servers, each with a home and a name of its own."""

    def make(name: str) -> Agent:
        unique = f"{name}-{tmp_path.parent.name}-{tmp_path.name}"
        return Agent(tmp_path / name, {**servers.variables, "MESH_NAME": unique})

    return make


def name_of(one: Agent) -> str:
    return one.variables["MESH_NAME"]


def store_of(one: Agent) -> Path:
    return one.home / ".local/share/mesh" / name_of(one)


@contextmanager
def daemon_of(one: Agent, *options: str | Path) -> Iterator[Running]:
    with one.starting("daemon", "--json", *options) as process:
        assert process.said()["event"] == "listening"
        yield process


class TestTrace:
    def test_message_is_followed_through_stores_and_logs(self, agent: Callable[[str], Agent], tmp_path: Path) -> None:
        alice, bob = agent("alice"), agent("bob")
        logs = tmp_path / "alice.log", tmp_path / "bob.log"
        with daemon_of(bob, "--verbose") as daemon:
            sent = alice.mesh("send", name_of(bob), SECRET, "--wait", "delivered", "--json", "--verbose")
            logs[0].write_text(sent.err)
            message = sent.lines[0]["id"]
            assert bob.mesh("listen", "--count", "1", "--json").lines[0]["id"] == message
            (there,) = bob.mesh("trace", message, "--json").lines[0]["sightings"]
            daemon.signal(signal.SIGTERM)
            daemon.ended()
            logs[1].write_text("\n".join(daemon.rest("err")))
        (here,) = alice.mesh("trace", message, "--json").lines[0]["sightings"]
        assert (here["direction"], here["state"], here["peer"]) == ("sent", "delivered", sent.lines[0]["peer"])
        assert (there["direction"], there["state"]) == ("received", "acked")
        assert bob.mesh("trace", message, "--json").lines[0]["sightings"] == [there]  # from the store, now

        traced = alice.mesh("trace", message, "--json", "--log", *logs)
        steps = [(one["source"], one["event"]) for one in traced.lines[0]["steps"]]
        ours = [event for source, event in steps if source == "alice" and event != "stored"]
        assert ours == ["queued", "encrypted", "relayed", "delivered"]
        assert [event for source, event in steps if source == "bob"] == ["received", "handed_over", "acked"]
        assert [one["time"] for one in traced.lines[0]["steps"]] == sorted(
            one["time"] for one in traced.lines[0]["steps"]
        )
        shown = alice.mesh("trace", message, "--log", *logs).out
        assert all(word in shown for word in ("delivered", "queued", "handed_over", "alice", "bob"))

    def test_message_that_waits_says_since_when(self, agent: Callable[[str], Agent]) -> None:
        alice, bob = agent("alice"), agent("bob")
        with bob.listening():
            pass
        sent = alice.mesh("send", name_of(bob), "x", "--wait", "stored", "--json")
        (one,) = alice.mesh("trace", sent.lines[0]["id"], "--json").lines[0]["sightings"]
        assert (one["state"], one["encrypted"], one["size"]) == ("stored", True, 3)
        assert one["queued"] > 1_700_000_000
        status = alice.mesh("status", "--json").lines[0]["stats"]
        assert status["outbox"] == 1
        assert 0 <= status["oldest_undelivered"] < 600

    def test_unknown_one_is_a_clear_error(self, agent: Callable[[str], Agent], tmp_path: Path) -> None:
        alice = agent("alice")
        log = tmp_path / "some.log"
        log.write_text('{"time":"2026-01-01T00:00:00.000Z","level":"debug","event":"sent","id":"another"}\n')
        without = alice.mesh("trace", "no-such-id")
        assert without.code == 3
        assert "no trace of a message 'no-such-id'" in without.complaint
        assert "--log FILE" in without.complaint
        with_log = alice.mesh("trace", "no-such-id", "--log", log, "--json")
        assert with_log.code == 3
        assert json.loads(with_log.complaint)["error"] == "MessageNotFound"

    def test_logs_alone_are_enough(self, agent: Callable[[str], Agent], tmp_path: Path) -> None:
        log = tmp_path / "relay.log"
        lines = [
            {
                "time": "2026-01-01T00:00:02.000Z",
                "level": "debug",
                "event": "message_delivered",
                "id": "m-1",
                "to": "b",
            },
            {"time": "2026-01-01T00:00:01.000Z", "level": "debug", "event": "message_routed", "id": "m-1", "to": "b"},
            {"time": "2026-01-01T00:00:01.000Z", "level": "debug", "event": "elsewhere", "id": "m-10"},
            {"id": "m-1"},
            ["m-1"],
        ]
        text = "\n".join(map(json.dumps, lines))
        log.write_text(f'plain text with "m-1"\n{{"m-1": broken\n{text}\n{"x" * 200_000}"m-1"\n')
        traced = agent("alice").mesh("trace", "m-1", "--json", "--log", log)
        assert [one["event"] for one in traced.lines[0]["steps"]] == ["message_routed", "message_delivered"]
        read = agent("alice").mesh("trace", "m-1", "--log", "-", stdin=text.encode())
        assert "+1.000 s" in read.out

    def test_log_that_is_none_is_named(self, agent: Callable[[str], Agent], tmp_path: Path) -> None:
        log = tmp_path / "text.log"
        log.write_text("2026-01-01 debug sent id=m-1\n")
        said = agent("alice").mesh("trace", "m-1", "--log", log)
        assert "holds no JSON" in said.err
        missing = agent("alice").mesh("trace", "m-1", "--log", tmp_path / "missing.log")
        assert missing.code == 2
        assert "missing.log cannot be read" in missing.complaint


class TestStatus:
    def test_shows_the_numbers_of_the_daemon(self, agent: Callable[[str], Agent]) -> None:
        alice, bob = agent("alice"), agent("bob")
        with daemon_of(bob), daemon_of(alice):
            assert alice.mesh("send", name_of(bob), "x", "--wait", "delivered").code == 0
            stats = alice.mesh("status", "--json").lines[0]["stats"]
            assert stats["connected"]
            assert (stats["frames_sent"]["message"], stats["receipts"]["delivered"]) == (1, 1)
            assert stats["peers"] == {"open": 1}
            text = alice.mesh("status").out
            assert all(word in text for word in ("backlog", "sessions", "1 open", "keys", "link", "sent", "saves"))

    def test_shows_what_the_store_knows_without_one(self, agent: Callable[[str], Agent]) -> None:
        alice = agent("alice")
        assert alice.mesh("status", "--json").lines[0]["stats"] is None
        assert alice.mesh("identity", "create").code == 0
        stats = alice.mesh("status", "--json").lines[0]["stats"]
        assert (stats["uptime"], stats["connected"], stats["outbox"], stats["peers"]) == (0, False, 0, {})
        assert "no peers yet" in alice.mesh("status").out

    def test_names_the_last_troubles(self, agent: Callable[[str], Agent], tmp_path: Path) -> None:
        with mesh_up(tmp_path / "own") as own:
            alice = Agent(tmp_path / "alice", {**own.variables, "MESH_NAME": "alice"})
            with daemon_of(alice) as daemon:
                own.process.signal(signal.SIGTERM)
                own.process.ended()
                assert daemon.said("err")["event"] == "disconnected"
                status = alice.mesh("status", "--json")
                assert status.code == 1
                kinds = {one["kind"] for one in status.lines[0]["stats"]["troubles"]}
                assert "disconnected" in kinds
                assert not status.lines[0]["stats"]["connected"]
                assert "trouble" in alice.mesh("status").out


class TestTop:
    def test_shows_both_servers_once_without_a_terminal(self, agent: Callable[[str], Agent]) -> None:
        alice = agent("alice")
        with alice.listening():
            shown = alice.mesh("top", "--once", "--interval", "0.2")
        assert shown.code == 0
        assert "\x1b" not in shown.out
        assert all(word in shown.out for word in ("relay", "registry", "agents", "routed", "backlog", "requests"))

    def test_gives_an_object_per_look(self, agent: Callable[[str], Agent]) -> None:
        alice = agent("alice")
        with alice.listening(), alice.starting("top", "--json", "--interval", "0.1") as process:
            for _ in range(3):
                said = process.said()
                assert said["relay"]["up"]
                assert said["registry"]["up"]
                assert said["relay"]["values"]["agents"] >= 1
                assert said["registry"]["values"]["requests_per_second"] >= 0
            process.signal(signal.SIGINT)
            assert process.ended() == 0
            assert process.rest("err") == []

    def test_says_that_a_server_is_down(self, tmp_path: Path) -> None:
        nowhere = {"MESH_RELAY_URL": "ws://127.0.0.1:9", "MESH_REGISTRY_URL": "http://127.0.0.1:9"}
        shown = Agent(tmp_path, nowhere).mesh("top", "--once", "--interval", "0.1")
        assert shown.code == 1
        assert shown.out.count("down") == 2

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_leaves_the_terminal_as_it_was(self, agent: Callable[[str], Agent], number: signal.Signals) -> None:
        code, written = watched_on_a_terminal(agent("alice"), number)
        assert code == 0
        assert written.startswith("\x1b[?1049h\x1b[?25l")
        assert written.endswith("\x1b[?25h\x1b[?1049l")
        assert "agents" in written


def watched_on_a_terminal(one: Agent, number: signal.Signals) -> tuple[int, str]:
    """Run ``mesh top`` on a terminal until its second picture, then end it; what it wrote."""
    ours, theirs = pty.openpty()
    argv = [*MESH, "top", "--interval", "0.1"]
    process = subprocess.Popen(argv, stdout=theirs, stderr=theirs, env=environment(**one.env, TERM="xterm"))
    os.close(theirs)
    written = b""
    signalled = False
    try:
        while chunk := os.read(ours, 65_536):
            written += chunk
            if not signalled and written.count(b"Ctrl-C ends") >= 2:
                process.send_signal(number)
                signalled = True
    except OSError:  # how Linux says that the other side has closed the terminal
        pass
    finally:
        os.close(ours)
    return process.wait(60), written.decode()


def secrets_in(packed: object) -> Iterator[bytes]:
    """Everything in a packed session that may be a key."""
    if isinstance(packed, bytes) and len(packed) >= 16:
        yield packed
    elif isinstance(packed, list | tuple):
        for one in packed:
            yield from secrets_in(one)


class TestLogs:
    def test_debug_logs_of_a_conversation_hold_no_payload_and_no_key(
        self, servers: Servers, agent: Callable[[str], Agent], tmp_path: Path
    ) -> None:
        alice, bob = agent("alice"), agent("bob")
        echo = (sys.executable, "-c", "import sys; print('you said', sys.stdin.read().splitlines()[-1])")
        token = {"MESH_TOKEN": "t0ken-of-the-gateway"}
        (tmp_path / "secret-name.txt").write_text(SECRET)
        logs: list[str] = []
        with bob.starting("respond", "--allow-everyone", "--verbose", "--", *echo, **token) as responder:
            while "responding" not in (line := responder.line("err")) and "answering" not in line:
                logs.append(line)
            for command in (
                ("ask", name_of(bob), SECRET),
                ("send", name_of(bob), SECRET, "--wait", "delivered"),
                ("send-file", name_of(bob), tmp_path / "secret-name.txt", "--description", SECRET, "--no-wait"),
            ):
                done = alice.mesh(*command, "--verbose", "--log-format", "json", **token)
                assert done.code == 0, done.err
                logs.append(done.err)
            responder.signal(signal.SIGINT)
            responder.ended()
            logs += responder.rest("err")
        text = "\n".join(logs)
        assert all(f'"event": "{event}"' in text for event in ("queued", "encrypted", "relayed", "delivered"))
        assert all(f" {event} id=" in text for event in ("received", "handed_over", "acked"))
        forbidden = [SECRET, "you said", "t0ken", "secret-name"]
        for one in (alice, bob):
            store = open_store(store_of(one))
            saved = store.load()
            store.close()
            assert saved.signing_key is not None
            keys = [bytes(saved.signing_key), *(bytes(key.private) for key in saved.one_time_prekeys.values())]
            keys += [bytes(dated.prekey.private) for dated in saved.signed_prekeys]
            sessions = [strand.session for peer in saved.peers.values() for strand in peer.strands]
            keys += [key for session in sessions for key in secrets_in(msgpack.unpackb(pack_session(session)))]
            assert len(keys) > len(sessions) > 0
            for key in keys:
                forbidden += [key.hex(), base64.b64encode(key).decode().rstrip("="), repr(key)[2:-1]]
                forbidden.append(base64.urlsafe_b64encode(key).decode().rstrip("="))
        assert [word for word in forbidden if word in text] == []
