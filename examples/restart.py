"""Nothing is lost when an agent is away or is restarted: keys, sessions and messages are in its store.

Prints what the agent finds when it is back.
"""

import asyncio
import os
import tempfile

from meshlib import ClientConfig, MeshClient

RELAY = os.environ.get("MESH_RELAY_URL", "ws://127.0.0.1:8083")
REGISTRY = os.environ.get("MESH_REGISTRY_URL", "http://127.0.0.1:8082")


async def main(folder: str) -> None:
    sleepy = ClientConfig(name="sleepy", store=f"{folder}/sleepy", relay_url=RELAY, registry_url=REGISTRY)
    writer = ClientConfig(name="writer", relay_url=RELAY, registry_url=REGISTRY)
    async with MeshClient(writer) as client:
        async with MeshClient(sleepy) as agent:
            did = agent.did
        # The relay keeps ciphertext for the absent agent; the receipt says when it is on disk there.
        receipt = await client.send(did, "good morning")
        await asyncio.wait_for(receipt.wait("stored"), 30)
        async with MeshClient(sleepy) as agent:
            assert agent.did == did
            message = await asyncio.wait_for(agent.receive(), 30)
            await message.ack()
            print("waiting for me:", message.payload)
        print("the writer's receipt says", await asyncio.wait_for(receipt.wait("delivered"), 30))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))
