"""Start a relay and a registry, let agents of three runtimes talk, and show what was said and what the relay saw.

The agents are the peers of ``interop/``: processes of their own, one on asyncio, one on trio, one in TypeScript.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.node import MissingNode, find_node
from demo.relay_view import StoredFrame, stored_for, where_found
from interop.processes import Child, Missing, Peer, PeerFailed
from meshlib.cli.output import Console, Style, visible

DEADLINE = 120.0
"""Seconds for everything; a demo that takes longer has failed."""
PATIENCE = 30.0
"""Seconds for one step. A cold machine starts Python and node slowly."""

WAITING = "this waited for you on the relay's disk 💌"


NOWHERE = "in no file of relay or registry"


class DemoFailed(Exception):
    """Something the demo promises did not happen."""


class Mesh(Child):
    """``mesh up --json``: relay and registry as one child."""

    def __init__(self, process: asyncio.subprocess.Process, label: str) -> None:
        super().__init__(process, label)
        self._ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def ready(self) -> dict[str, Any]:
        try:
            return await asyncio.wait_for(self._ready, PATIENCE)
        except TimeoutError:
            raise DemoFailed(f"relay and registry did not start:\n{self.errors}") from None

    def _on_output(self, line: str) -> None:
        super()._on_output(line)
        with contextlib.suppress(ValueError):
            said = json.loads(line)
            if said.get("event") == "ready" and not self._ready.done():
                self._ready.set_result(said)

    def _on_silence(self) -> None:
        if not self._ready.done():
            self._ready.set_exception(DemoFailed(f"relay and registry did not start:\n{self.errors}"))


@dataclass(frozen=True)
class Agent:
    """An agent in a process of its own."""

    name: str
    runtime: str
    peer: Peer

    @property
    def did(self) -> str:
        return self.peer.did


class Demo:
    """The play. Every line on the screen is printed after what it tells has happened."""

    def __init__(self, console: Console, folder: Path) -> None:
        self._console = console
        self._folder = folder
        self._names: dict[str, str] = {}

    async def run(self) -> None:
        node = find_node()
        async with contextlib.AsyncExitStack() as stack:
            argv = [sys.executable, "-m", "meshlib", "up", "--json", "--relay-port", "0", "--registry-port", "0"]
            argv += ["--data", str(self._folder / "servers")]
            mesh = await stack.enter_async_context(Mesh.running("mesh up", argv))
            servers = await mesh.ready()
            self._head("servers")
            self._console.table(
                [[role, servers[role], "SQLite, a process of its own"] for role in ("relay", "registry")],
                (Style.BOLD, Style.NAME, Style.DIM),
            )
            self._head("agents")
            python = [sys.executable, "-m", "interop.peer"]
            coming = [
                self._agent("alice", [*python, "asyncio"], servers),
                self._agent("bob", [*python, "trio"], servers),
            ]
            if isinstance(node, Path):
                coming.append(self._agent("carol", [node, Path("interop") / "peer.mjs"], servers, adapter=True))
            agents = [await stack.enter_async_context(agent) for agent in coming]
            self._console.table([[a.name, a.runtime, a.did] for a in agents], (Style.NAME, Style.PLAIN, Style.DIM))
            if isinstance(node, MissingNode):
                self._console.say(f"  {self._console.paint(f'no TypeScript agent: {node.reason}', Style.WARN)}")
            for opener, answerer in itertools.combinations(agents, 2):
                # The SDK opens one of its sessions itself and answers in the other.
                await self._converse(*((answerer, opener) if opener.name == "bob" else (opener, answerer)))
            await self._offline(absent=agents[1], writer=agents[0], files=Path(servers["data"]))

    @contextlib.asynccontextmanager
    async def _agent(
        self, name: str, argv: Sequence[str | Path], servers: dict[str, Any], **options: Any
    ) -> AsyncIterator[Agent]:
        async with Peer.running(name, argv) as peer:
            about = await peer.expect("ready", patience=PATIENCE)
            await peer.call(
                "start",
                name=name,
                relay=servers["relay"],
                registry=servers["registry"],
                store=str(self._folder / name),
                **options,
            )
            peer.did = (await peer.call("connect", patience=PATIENCE))["did"]
            self._names[peer.did] = name
            yield Agent(name, runtime_of(about), peer)

    async def _converse(self, opener: Agent, answerer: Agent) -> None:
        """One opens a session and writes, the other reads and answers."""
        self._head(f"{opener.name} and {answerer.name}")
        found = (await opener.peer.call("discover", name=answerer.name))["dids"]
        if found != [answerer.did]:
            raise DemoFailed(f"{opener.name} looks for {answerer.name} and finds {found}")
        self._tell(opener, f"finds {answerer.name} at the registry, checks the keys and knocks")
        greeting = f"hello {answerer.name}, this is {opener.name} on {opener.runtime} ✨"
        await opener.peer.call("establish", peer=answerer.did)
        await opener.peer.call("send", peer=answerer.did, payload=greeting)
        await answerer.peer.expect("knock", patience=PATIENCE, **{"from": opener.did})
        self._tell(answerer, f"accepts the knock of {opener.name}")
        await self._hear(answerer, opener, greeting, "decrypts the first message")
        reply = f"hello {opener.name}, {answerer.runtime} understood you"
        await answerer.peer.call("send", peer=opener.did, payload=reply)
        await self._hear(opener, answerer, reply, "decrypts the answer")

    async def _offline(self, *, absent: Agent, writer: Agent, files: Path) -> None:
        """A message to an agent that is away: what the relay keeps of it, and its delivery."""
        self._head(f"{absent.name} is away")
        await absent.peer.call("disconnect")
        self._tell(absent, "leaves; keys and sessions stay in its own store")
        await writer.peer.call("send", peer=absent.did, payload=WAITING, wait="stored", patience=PATIENCE)
        self._tell(writer, f"writes to {absent.name}; the relay confirms: stored")
        frames = stored_for(files / "relay.db", absent.did)
        if len(frames) != 1:
            raise DemoFailed(f"the relay keeps {len(frames)} messages for {absent.name} instead of one")
        self._console.say("\n  all that relay.db keeps of it:")
        self._show(frames[0])
        leaked = where_found(WAITING, files)
        if leaked:
            raise DemoFailed(f"the plaintext stands in {', '.join(leaked)}")
        self._console.say(
            f"    {'plaintext':<11} {self._console.paint('in no file of relay or registry', Style.GOOD)}\n"
        )
        await absent.peer.call("connect", patience=PATIENCE)
        self._tell(absent, "comes back as a new client on the same store")
        await self._hear(absent, writer, WAITING, "decrypts what waited")

    def _show(self, frame: StoredFrame) -> None:
        members = json.loads(frame.text)
        rows = [
            ["from", f"{self._names.get(frame.sender, '?'):<7} {frame.sender}"],
            ["to", f"{self._names.get(frame.recipient, '?'):<7} {frame.recipient}"],
            ["id", members["id"]],
            ["header", json.dumps(members["header"])],
            ["ciphertext", f"{members['ciphertext'][:56]}… ({len(members['ciphertext'])} characters)"],
        ]
        self._console.table(rows, (Style.DIM, Style.PLAIN), indent="    ")

    async def _hear(self, who: Agent, sender: Agent, expected: str, what: str) -> None:
        message = await who.peer.expect("message", patience=PATIENCE, **{"from": sender.did})
        if message.get("payload") != expected:
            raise DemoFailed(f"{who.name} hears {message.get('payload')!r} instead of {expected!r}")
        self._tell(who, f"{what}: {self._console.paint(visible(expected), Style.GOOD)}")

    def _tell(self, who: Agent, what: str) -> None:
        self._console.say(f"  {self._console.paint(f'{who.name:<7}', Style.NAME)} {what}")

    def _head(self, text: str) -> None:
        self._console.say(f"\n{self._console.paint(text, Style.BOLD)}")


def runtime_of(about: dict[str, Any]) -> str:
    """What an agent runs on, by its own word."""
    if about["kind"] == "sdk":
        return f"TypeScript SDK {about['sdk']}, node {about['node'].removeprefix('v')}"
    return f"Python {about['python']}, {about['backend']}"


async def play(console: Console) -> None:
    """The demo from start to end; whatever happens, all children are gone afterwards."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory(prefix="mesh-demo-") as folder:
        async with asyncio.timeout(DEADLINE):
            await Demo(console, Path(folder)).run()


def main() -> int:
    console = Console(sys.stdout, sys.stderr, os.environ)
    started = time.monotonic()
    try:
        asyncio.run(play(console))
    except (DemoFailed, Missing, PeerFailed, OSError) as error:
        reason = str(error) or f"not done within {DEADLINE:g} s"
        print(f"\nthe demo failed: {reason}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\nstopped", file=sys.stderr)
        return 130
    took = f"every message arrived, everything is stopped again ({time.monotonic() - started:.1f} s)"
    console.say(f"\n{console.paint(took, Style.GOOD)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
