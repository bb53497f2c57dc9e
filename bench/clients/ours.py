"""Our client as a process of its own, twice or once.

python -m bench.clients.ours '{"task": "talk", "relay": "127.0.0.1:1", "registry": "127.0.0.1:2", "folder": null,
                               "messages": 1000, "payload": 256}'
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from meshlib import ClientConfig, MeshClient
from meshlib.config import Limits

WINDOW = 256
"""Messages that were sent and have not arrived."""


def config(name: str, relay: str, registry: str, folder: str | None) -> ClientConfig:
    """A client of these servers; ``folder`` of None keeps everything in memory."""
    store = None if folder is None else Path(folder) / name
    urls = {"relay_url": f"ws://{relay}", "registry_url": f"http://{registry}"}
    limits = Limits(newcomers_burst=1_000_000)  # thousands of peers knock at once, which is not what is measured
    return ClientConfig(name=name, **urls, store=store, proxy="", limits=limits)


async def talk(*, messages: int, payload: int, **where: Any) -> dict[str, float]:
    """Messages per second from one client to another in the same process, and whether each came once and in order."""
    async with MeshClient(config("bob", **where)) as bob, MeshClient(config("alice", **where)) as alice:
        await alice.send(bob.did, {"n": -1})
        inbox = bob.inbox()
        await anext(inbox)
        text, room = "x" * max(0, payload - 20), asyncio.Semaphore(WINDOW)
        got: list[int] = []

        async def send() -> None:
            async with asyncio.TaskGroup() as sends:
                for number in range(messages):
                    await room.acquire()
                    sends.create_task(alice.send(bob.did, {"n": number, "text": text}))

        began, cpu = time.perf_counter(), time.process_time()
        sending = asyncio.create_task(send())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(120):
                while len(got) < messages:
                    message = await anext(inbox)
                    got.append(message.payload["n"])  # type: ignore[index]
                    room.release()
        spent, cpu = time.perf_counter() - began, time.process_time() - cpu
        await asyncio.wait_for(sending, 30)
    lost, doubled = messages - len(set(got)), len(got) - len(set(got))
    reordered = sum(second < first for first, second in itertools.pairwise(got))
    faults = {"lost": lost, "doubled": doubled, "reordered": reordered}
    return {"value": len(got) / spent, "us": cpu / messages * 1e6, **faults}


async def hub(*, messages: int, **where: Any) -> dict[str, float]:
    """Take messages of many peers; MiB at the end, and how many of them the peers are."""
    async with MeshClient(config("hub", **where)) as client:
        print(json.dumps({"did": client.did}), flush=True)
        inbox = client.inbox()
        before = _resident()
        peers: set[str] = set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(300):
                while len(peers) < messages:
                    peers.add((await anext(inbox)).sender)
        await asyncio.sleep(0.5)
        after = _resident()
    return {"value": after, "each": (after - before) * 1024 / messages, "lost": messages - len(peers)}


def _resident() -> float:
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


TASKS: dict[str, Callable[..., Awaitable[dict[str, float]]]] = {"talk": talk, "hub": hub}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(asyncio.run(TASKS[asked.pop("task")](**asked))), flush=True)  # type: ignore[arg-type]
