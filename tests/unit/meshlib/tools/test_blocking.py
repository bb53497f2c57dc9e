"""The tools in threads, and as a plugin of Hermes, over a daemon's blocking client that is made up."""

from __future__ import annotations

import json
import os
import queue
import threading
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from meshlib.errors import InvalidValue, KnockRefused
from meshlib.testing import SeededEntropy
from meshlib.tools.blocking import BlockingToolbox
from meshlib.tools.desk import Permissions, default_folders, permissions_from
from meshlib.tools.hermes import Plugin, register
from tests.unit.meshlib.tools.kit import BOB

PATIENCE = 30


@dataclass(eq=False)
class Message:
    sender: str
    payload: object
    id: str = "m1"
    encrypted: bool = True
    redelivered: bool = False
    acked: int = 0

    def ack(self) -> None:
        self.acked += 1


@dataclass
class Receipt:
    id: str
    peer: str
    reaches: str
    state: str = "queued"
    detail: str = ""

    def wait(self, state: str = "delivered", timeout: float | None = None) -> str:
        assert timeout is not None  # a model never waits for ever
        if self.reaches == "refused":
            raise KnockRefused(self.peer, "no")
        if state == "delivered" and self.reaches != state:
            raise TimeoutError
        self.state = self.reaches
        return self.state


@dataclass
class Client:
    """As :class:`meshlib.daemon.blocking.BlockingDaemonClient`."""

    did: str = BOB
    reaches: str = "delivered"
    sent: list[tuple[str, object]] = field(default_factory=list)
    waiting: queue.Queue[Message | None] = field(default_factory=queue.Queue)
    asked: threading.Event = field(default_factory=threading.Event)

    def resolve(self, peer: str) -> str:
        return BOB

    def send(self, peer: str, payload: object) -> Receipt:
        self.sent.append((peer, payload))
        return Receipt("m7", BOB, self.reaches)

    def receive(self, timeout: float | None = None, senders: object = None) -> Message | None:
        assert timeout is not None
        self.asked.set()
        return self.waiting.get(timeout=PATIENCE)


def box_of(client: Client) -> BlockingToolbox:
    return BlockingToolbox(client, Permissions(), SeededEntropy("blocking"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("reaches", "ok"), [("delivered", True), ("stored", True), ("refused", False)])
def test_send_waits_for_a_bounded_time(reaches: str, ok: bool) -> None:
    client = Client(reaches=reaches)
    result = json.loads(box_of(client).call("mesh_send", {"to": "bob", "content": "hello"}).text)
    assert client.sent == [("bob", "hello")]
    assert result["ok"] is ok
    assert not ok or result["state"] == reaches


def test_messages_are_confirmed_once_the_result_was_handed_over() -> None:
    client, message = Client(), Message(BOB, "hello")
    client.waiting.put(message)
    client.waiting.put(None)
    box = box_of(client)
    call = box.call("mesh_inbox", {})
    assert "hello" in call.text
    assert message.acked == 0
    box.confirm(call)
    assert message.acked == 1


def test_thread_that_waits_lets_others_work() -> None:
    client = Client()
    box = box_of(client)
    results: list[str] = []
    waiter = threading.Thread(target=lambda: results.append(box.call("mesh_await", {"timeout_seconds": 20}).text))
    waiter.start()
    assert client.asked.wait(PATIENCE)
    assert json.loads(box.call("mesh_send", {"to": "bob", "content": "hello"}).text)["ok"]
    client.waiting.put(Message(BOB, "there you are"))
    waiter.join(PATIENCE)
    assert "there you are" in results[0]


class Context:
    """As Hermes hands it to a plugin."""

    def __init__(self) -> None:
        self.tools: dict[str, dict[str, Any]] = {}
        self.hooks: dict[str, Any] = {}

    def register_tool(self, name: str, toolset: str, schema: dict[str, Any], handler: Any, **more: Any) -> None:
        self.tools[name] = {"toolset": toolset, "schema": schema, "handler": handler}

    def register_hook(self, name: str, callback: Any) -> None:
        self.hooks[name] = callback


def test_hermes_finds_the_plugin_by_its_entry_point() -> None:
    (point,) = entry_points(group="hermes_agent.plugins", name="mesh")
    assert point.load().register is register  # the module, not the function


def test_plugin_registers_every_tool_under_both_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MESH_STORE", str(tmp_path))
    context = Context()
    register(context)
    assert len(context.tools) == 14
    assert {name for name, tool in context.tools.items() if tool["toolset"] == "kars_mesh"} == {
        f"kars_{name}" for name, tool in context.tools.items() if tool["toolset"] == "mesh"
    }
    for name, tool in context.tools.items():
        assert (tool["schema"]["name"], tool["schema"]["parameters"]["type"]) == (name, "object")
    assert set(context.hooks) == {"post_tool_call"}


def test_plugin_without_a_daemon_says_what_is_missing(tmp_path: Path) -> None:
    plugin = Plugin({"MESH_STORE": str(tmp_path)}, tmp_path)
    text = plugin.handler("kars_mesh_send")({"to": "bob", "payload": "x"}, task_id="t", session_id="s")
    result = json.loads(text)
    assert (result["ok"], result["fault"]) == (False, "this machine")
    assert "mesh daemon" in result["next"]
    plugin.ended(tool_name="kars_mesh_send", result=text, status="ok")
    plugin.ended(tool_name="other", result={"a": 1})


class TestPermissions:
    def test_current_folder_is_open_by_default(self, tmp_path: Path) -> None:
        assert permissions_from({"HOME": "/home/somebody"}, tmp_path).folders == (tmp_path.resolve(),)

    def test_folder_that_holds_the_home_is_not(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        for cwd in (home, tmp_path, Path("/")):
            assert default_folders(cwd, home) == ()
        assert default_folders(Path("/"), None) == ()

    def test_operator_may_open_others(self, tmp_path: Path) -> None:
        one, two = tmp_path / "one", tmp_path / "two"
        one.mkdir()
        two.mkdir()
        environment = {"MESH_FILES": f"{one}{os.pathsep}{two}"}
        assert permissions_from(environment, tmp_path).folders == (one.resolve(), two.resolve())
        assert permissions_from(environment, tmp_path, [str(two)]).folders == (two.resolve(),)

    def test_folder_that_is_none_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidValue, match="no folder"):
            permissions_from({"MESH_FILES": str(tmp_path / "none")}, tmp_path)

    @pytest.mark.parametrize(
        ("before", "hops"),
        [("", 0), ("0", 1), ("3", 4), ("9" * 30, 1_001), ("-1", 0), ("x", 0), ("²", 0), ("1.5", 0)],
    )
    def test_requests_carry_one_hop_more_than_the_task(self, tmp_path: Path, before: str, hops: int) -> None:
        assert permissions_from({"MESH_HOPS": before}, tmp_path).hops == hops
