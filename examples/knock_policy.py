"""Who may talk to me? A policy decides about every knock; a refused peer learns it at once. Prints both outcomes."""

import asyncio
import os

from meshlib import ClientConfig, KnockReceived, KnockRefused, MeshClient

RELAY = os.environ.get("MESH_RELAY_URL", "ws://127.0.0.1:8083")
REGISTRY = os.environ.get("MESH_REGISTRY_URL", "http://127.0.0.1:8082")


async def main() -> None:
    friends: set[str] = set()

    async def only_friends(knock: KnockReceived) -> bool:
        # The peer is proven to own this DID before the policy is asked. Ask a database, a person, another agent.
        return knock.peer in friends

    shy = ClientConfig(name="shy", knock_policy=only_friends, relay_url=RELAY, registry_url=REGISTRY)
    anybody = ClientConfig(relay_url=RELAY, registry_url=REGISTRY)
    async with MeshClient(shy) as agent, MeshClient(anybody) as friend, MeshClient(anybody) as stranger:
        friends.add(friend.did)
        await friend.send(agent.did, "it's me")
        message = await asyncio.wait_for(agent.receive(), 30)
        await message.ack()
        print("friend:", message.payload)
        try:
            receipt = await stranger.send(agent.did, "let me in")
            await asyncio.wait_for(receipt.wait(), 30)
        except KnockRefused as refusal:
            print("stranger: refused,", refusal.reason.rpartition(": ")[2])


if __name__ == "__main__":
    asyncio.run(main())
