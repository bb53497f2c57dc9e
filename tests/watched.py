"""Both servers as real processes that log everything as JSON, and agents that have talked over them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.commands import Agent, Running, running

PAYLOAD = "the payload that nobody may read"
TOKEN = "token-that-opens-the-gateway"


@dataclass(frozen=True)
class Server:
    """A relay or registry."""

    process: Running
    url: str

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", trust_env=False, timeout=20)

    def metrics(self) -> Mapping[str, Metric]:
        """What ``/metrics`` shows, by the name of the family as it stands in the page."""
        answer = self.get("/metrics")
        assert answer.status_code == 200
        families = text_string_to_metric_families(answer.text)
        return {f"{one.name}_total" if one.type == "counter" else one.name: one for one in families}

    def value(self, name: str, **labels: str) -> float:
        """One sample."""
        family = name if name in (found := self.metrics()) else name.rpartition("_")[0]
        (value,) = [s.value for s in found[family].samples if s.name == name and s.labels == labels]
        return value

    def stopped(self) -> list[str]:
        """End it with SIGTERM; the lines of its log."""
        self.process.stop()
        assert self.process.ended() == 0
        return self.process.rest("err")


@contextmanager
def serving(role: str, *options: str | Path) -> Iterator[Server]:
    """A server that says everything."""
    argv = [sys.executable, "-m", f"mesh_{role}", "serve", "--port", "0", "--log-level", "debug"]
    with running([*argv, "--log-format", "json", *options]) as process:
        yield Server(process, f"http://127.0.0.1:{process.said()['port']}")


@dataclass(frozen=True)
class Conversation:
    """What is left of one: the servers still run."""

    relay: Server
    registry: Server
    alice: Agent
    bob: Agent
    dids: Mapping[str, str]
    message_id: str
    """Of the message bob was away for."""
    logs: list[str]
    """Lines of the agents' logs."""


def events(lines: list[str], name: str) -> list[dict[str, Any]]:
    """The events of a name in a log of JSON lines."""
    decoded = [json.loads(line) for line in lines]
    return [event for event in decoded if event["event"] == name]


@contextmanager
def conversation(folder: Path) -> Iterator[Conversation]:
    """Alice writes to bob while he is away; he comes, reads, and answers."""
    with (
        serving("relay", "--store", folder / "relay.db") as relay,
        serving("registry", "--store", folder / "registry.db") as registry,
    ):
        urls = {"MESH_RELAY_URL": relay.url.replace("http", "ws", 1), "MESH_REGISTRY_URL": registry.url}
        alice, bob = (Agent(folder / name, {**urls, "MESH_NAME": name}) for name in ("alice", "bob"))
        logs: list[str] = []
        with bob.starting("listen", "--json", "--verbose", MESH_TOKEN=TOKEN) as listening:
            logs += until(listening, "listening")
            met = alice.mesh("send", "--json", "--verbose", "--wait", "delivered", "bob", PAYLOAD, MESH_TOKEN=TOKEN)
            assert met.code == 0, met.err
            assert listening.said()["payload"] == PAYLOAD
            listening.stop()
            logs += listening.rest("err")
        sent = alice.mesh("send", "--json", "--verbose", "--wait", "stored", "bob", PAYLOAD, MESH_TOKEN=TOKEN)
        assert sent.code == 0, sent.err
        with bob.starting("listen", "--json", "--verbose", MESH_TOKEN=TOKEN) as listening:
            logs += until(listening, "listening")
            assert listening.said()["payload"] == PAYLOAD
            answer = bob.mesh("identity", "show", "--json")
            assert answer.code != 0, "the agent runs, its store is in use"
            listening.stop()
            logs += listening.rest("err")
        logs += met.err.splitlines() + sent.err.splitlines()
        dids = {
            one.variables["MESH_NAME"]: one.mesh("identity", "show", "--json").lines[0]["did"] for one in (alice, bob)
        }
        yield Conversation(relay, registry, alice, bob, dids, sent.lines[-1]["id"], logs)


def until(process: Running, event: str) -> list[str]:
    """Lines of standard error up to an event."""
    lines = [process.line("err")]
    while json.loads(lines[-1])["event"] != event:
        lines.append(process.line("err"))
    return lines
