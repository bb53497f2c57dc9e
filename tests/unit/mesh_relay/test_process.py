"""``mesh-relay serve`` as a process, met by an independent client: started, told to stop, killed."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from meshlib.identity import Identity
from tests.unit.mesh_relay.kit import ALICE, BOB, ack, connect_frame, message

FEATURES = ["receipts", "challenge"]


class Process:
    """A running relay."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "mesh_relay", "serve", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            text=True,
        )
        assert self.popen.stdout
        self.listening: dict[str, Any] = json.loads(self.popen.stdout.readline() or "{}")
        self.port: int = self.listening.get("port", 0)

    def stop(self, how: int = signal.SIGTERM) -> tuple[int, str, str]:
        self.popen.send_signal(how)
        out, err = self.popen.communicate(timeout=20)
        return self.popen.returncode, out, err

    @contextmanager
    def join(self, who: Identity, features: list[str] | None = None) -> Iterator[ClientConnection]:
        with connect(f"ws://127.0.0.1:{self.port}/ws", compression=None) as socket:
            assert socket.response
            nonce = socket.response.headers["Mesh-Challenge"] if features else None
            socket.send(connect_frame(who, time.time(), nonce=nonce, features=features).decode())
            if features is not None:
                assert json.loads(socket.recv(10))["type"] == "connected"
            yield socket


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[Process]:
    running = Process(*arguments, **environment)
    try:
        yield running
    finally:
        if running.popen.poll() is None:
            running.popen.kill()
        running.popen.communicate()


def receive(socket: ClientConnection) -> dict[str, Any]:
    decoded = json.loads(socket.recv(10))
    assert isinstance(decoded, dict)
    return decoded


def say(socket: ClientConnection, *frames: bytes) -> None:
    for frame in frames:
        socket.send(frame.decode())


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_closes_1001_and_exits_0(tmp_path: Path, how: int) -> None:
    store = tmp_path / "state" / "relay.db"
    with process("--port", "0", "--store", str(store), "--log-format", "json") as relay:
        assert relay.listening["event"] == "listening"
        assert relay.listening["host"] == "127.0.0.1"
        assert stat.S_IMODE(store.stat().st_mode) == 0o600
        with relay.join(ALICE) as alice:
            relay.popen.send_signal(how)
            with pytest.raises(ConnectionClosed) as closed:
                alice.recv(10)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
        out, err = relay.popen.communicate(timeout=20)
        assert relay.popen.returncode == 0
        assert out == ""
        assert [json.loads(line)["event"] for line in err.splitlines()] == ["listening", "draining"]


def test_stored_frames_survive_a_kill_and_replay_in_order(tmp_path: Path) -> None:
    arguments = ("--port", "0", "--store", str(tmp_path / "relay.db"))
    with process(*arguments) as relay, relay.join(ALICE, FEATURES) as alice:
        say(alice, *(message(BOB.did, str(number)) for number in range(200)))
        assert [receive(alice)["state"] for _ in range(200)] == ["stored"] * 200
        assert relay.stop(signal.SIGKILL)[0] == -signal.SIGKILL
    with process(*arguments) as relay:
        with relay.join(BOB, FEATURES) as bob:
            assert [receive(bob)["id"] for _ in range(200)] == [str(number) for number in range(200)]
            say(bob, *(ack(str(number)) for number in range(199)))
            with relay.join(ALICE, FEATURES) as alice:  # a later frame comes through: the acks have been read
                say(alice, message(BOB.did, "later"))
                assert receive(bob)["id"] == "later"
        assert relay.stop()[0] == 0
    with process(*arguments) as relay, relay.join(BOB, FEATURES) as bob:
        assert [receive(bob)["id"] for _ in range(2)] == ["199", "later"]


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["relaxed", "strict"])
def test_nothing_with_a_receipt_is_lost_by_a_kill_under_load(tmp_path: Path, durability: str) -> None:
    arguments = ("--port", "0", "--store", str(tmp_path / "relay.db"), "--durability", durability)
    stored: set[str] = set()
    with process(*arguments) as relay, relay.join(ALICE, FEATURES) as alice:

        def send() -> None:
            number = 0
            try:
                while True:
                    number += 1
                    say(alice, message(BOB.did, str(number)))
            except ConnectionClosed:
                pass

        sender = threading.Thread(target=send)
        sender.start()
        while len(stored) < 2000:
            stored.add(receive(alice)["id"])
        relay.popen.kill()
        try:
            while True:
                stored.add(receive(alice)["id"])
        except ConnectionClosed:
            pass
        sender.join()
    with process(*arguments) as relay, relay.join(BOB, []) as bob:
        say(bob, b'{"v":1,"type":"fetch_pending"}')
        got = []
        while (frame := receive(bob))["type"] == "message":
            got.append(frame["id"])
    assert frame["type"] == "pending_messages"
    assert stored <= set(got)
    assert got == sorted(got, key=int)


def test_settings_come_from_the_environment_too(tmp_path: Path) -> None:
    environment = {"MESH_RELAY_PORT": "0", "MESH_RELAY_STORE": ":memory:", "MESH_RELAY_DURABILITY": "strict"}
    with process(**environment) as relay:
        with urllib.request.urlopen(f"http://127.0.0.1:{relay.port}/health", timeout=10) as answer:
            assert json.load(answer)["durability"] == "strict"
        assert relay.stop()[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--port", "many", "--store", ":memory:"], 2, "port is a number"),
        (["--port", "0", "--store", "/dev/null/relay.db"], 1, "/dev/null/relay.db"),
        (["--port", "0", "--store", ":memory:", "--host", "203.0.113.7"], 1, "mesh-relay: "),
        (["--durability", "none"], 2, "invalid choice"),
    ],
)
def test_what_cannot_work_is_one_line_and_an_exit_code(arguments: list[str], code: int, words: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "mesh_relay", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert finished.returncode == code
    assert words in finished.stderr
    assert "Traceback" not in finished.stderr


def test_no_payload_key_or_signature_is_logged_at_any_level(tmp_path: Path) -> None:
    with process("--port", "0", "--store", str(tmp_path / "relay.db"), "--log-level", "debug") as relay:
        with relay.join(ALICE, FEATURES) as alice, relay.join(BOB) as bob:
            say(alice, message(BOB.did, "1", ciphertext="c2VjcmV0IHdvcmRz"), b'{"secret')
            assert receive(bob)["ciphertext"] == "c2VjcmV0IHdvcmRz"
            assert receive(alice)["type"] in ("error", "receipt")
        code, _, err = relay.stop()
    assert code == 0
    assert "secret" not in err
    assert "c2VjcmV0" not in err
