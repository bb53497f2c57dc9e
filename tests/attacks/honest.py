"""A well-behaved pair of agents that goes on talking, in a process of its own, and says how long everything takes.

``python -m tests.attacks.honest RELAY REGISTRY [CA]`` prints ``ready <DID>`` with the DID of the one who listens, then
a line per lap: ``message <seconds>`` from sending to having it, ``lookup <seconds>`` for a question to the registry.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
import time

from meshlib import ClientConfig, MeshClient

PAUSE = 0.01
"""Seconds between two laps: they are there to notice a delay, not to cause one."""
PATIENCE = 30.0


async def talk(relay: str, registry: str, ca: str | None = None) -> None:
    """Talk until the process is ended."""
    tls = None if ca is None else ssl.create_default_context(cafile=ca)
    configs = [ClientConfig(name=name, relay_url=relay, registry_url=registry, tls=tls) for name in ("anna", "ben")]
    async with MeshClient(configs[0]) as anna, MeshClient(configs[1]) as ben:
        ready = False
        while True:
            began = time.perf_counter()
            await anna.send(ben.did, "hello")
            async with asyncio.timeout(PATIENCE):
                message = await ben.receive([anna.did])
            spent = time.perf_counter() - began
            await message.ack()
            if not ready:
                ready = True
                print("ready", ben.did, flush=True)
            print("message", spent, flush=True)
            began = time.perf_counter()
            await anna.discover("ben")
            print("lookup", time.perf_counter() - began, flush=True)
            await asyncio.sleep(PAUSE)


if __name__ == "__main__":
    asyncio.run(talk(*sys.argv[1:]))
