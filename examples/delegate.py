"""A parent has three agents work at the same time, and one of them draws. Prints their answers and what it received.

MESH_WRITER, if set, is the DID of another agent that writes: examples/typescript_responder.mjs is one.
"""

import asyncio
import os
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from meshlib import ClientConfig, MeshClient
from meshlib.responder import respond
from meshlib.responder.runtimes.protocol import Done, Task

RELAY = os.environ.get("MESH_RELAY_URL", "ws://127.0.0.1:8083")
REGISTRY = os.environ.get("MESH_REGISTRY_URL", "http://127.0.0.1:8082")


def analyse(task: Task) -> str:
    return "sales are up 6 %"


def write(task: Task) -> str:
    return "Sales rose again."


async def main() -> None:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def config(store: str, incoming: Path | None = None) -> ClientConfig:
            return ClientConfig(store=folder / store, incoming=incoming, relay_url=RELAY, registry_url=REGISTRY)

        def draw(task: Task) -> Done:
            chart = folder / "chart.svg"
            chart.write_text("<svg/>")
            return Done("here is a chart", artifacts=[chart])

        parent = await stack.enter_async_context(MeshClient(config("parent", folder / "incoming")))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        workers = []
        team: dict[str, str] = {}
        for name, function in (("analyst", analyse), ("viz", draw), ("writer", write)):
            if name == "writer" and "MESH_WRITER" in os.environ:
                team[os.environ["MESH_WRITER"]] = name
                continue
            agent = await stack.enter_async_context(MeshClient(config(name)))
            workers.append(tasks.create_task(respond(agent, function, tasks_from=(parent.did,))))
            team[agent.did] = name

        wanted = dict.fromkeys(team, "the sales of last quarter, please")
        answers = {}
        async for result in parent.gather(wanted, timeout=30):
            answers[team[result.peer]] = result.answer.content if result.answer else f"nothing: {result.failure}"
        for name in sorted(answers):
            print(f"{name}: {answers[name]}")
        message = await asyncio.wait_for(parent.receive(), 30)
        await message.ack()
        if isinstance(message.payload, dict):
            print(f"received {Path(message.payload['saved_to']).name}, {message.payload['size_bytes']} bytes")
        for worker in workers:
            worker.cancel()


if __name__ == "__main__":
    asyncio.run(main())
