"""The same client on trio: a nursery full of workers, one of which gets the job. Prints who did it.

Agents find each other by a capability they publish, not only by name.
"""

import os

import trio

from meshlib import ClientConfig, MeshClient

RELAY = os.environ.get("MESH_RELAY_URL", "ws://127.0.0.1:8083")
REGISTRY = os.environ.get("MESH_REGISTRY_URL", "http://127.0.0.1:8082")


def config(name: str, *capabilities: str) -> ClientConfig:
    return ClientConfig(name=name, capabilities=capabilities, relay_url=RELAY, registry_url=REGISTRY)


async def work(name: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    async with MeshClient(config(name, "shouting")) as client:
        task_status.started()
        async for message in client.inbox():
            await client.send(message.sender, f"{name}: {str(message.payload).upper()}")


async def main() -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(work, "worker-1")
        await nursery.start(work, "worker-2")
        async with MeshClient(config("boss")) as boss:
            workers = await boss.discover("shouting")
            await boss.send(workers[0].did, "get it done")
            with trio.fail_after(30):
                answer = await boss.receive()
            await answer.ack()
            print(f"{len(workers)} workers found;", answer.payload)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
