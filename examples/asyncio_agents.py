"""Two agents on asyncio: one asks, the other answers. Prints the answer.

Needs a relay and a registry, for example from ``mesh up``; MESH_RELAY_URL and MESH_REGISTRY_URL say where.
"""

import asyncio
import os

from meshlib import ClientConfig, MeshClient

RELAY = os.environ.get("MESH_RELAY_URL", "ws://127.0.0.1:8083")
REGISTRY = os.environ.get("MESH_REGISTRY_URL", "http://127.0.0.1:8082")


def config(name: str) -> ClientConfig:
    return ClientConfig(name=name, relay_url=RELAY, registry_url=REGISTRY)


async def answer(client: MeshClient) -> None:
    async for message in client.inbox():
        match message.payload:  # a peer may send anything: look before you use it
            case {"numbers": [*numbers]} if all(isinstance(number, int) for number in numbers):
                await client.send(message.sender, {"sum": sum(numbers)})
            case _:
                await client.send(message.sender, {"error": "send me numbers"})


async def main() -> None:
    async with MeshClient(config("adder")) as adder, MeshClient(config("asker")) as asker:
        answering = asyncio.create_task(answer(adder))
        await asker.send("adder", {"numbers": [1, 2, 3]})
        message = await asyncio.wait_for(asker.receive(), 30)
        await message.ack()
        print("the answer is", message.payload)
        answering.cancel()


if __name__ == "__main__":
    asyncio.run(main())
