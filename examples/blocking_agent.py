"""For programs without an event loop: the same verbs, blocking. Prints what came back."""

import os
import threading

from meshlib import BlockingMeshClient, ClientConfig

RELAY = os.environ.get("MESH_RELAY_URL", "ws://127.0.0.1:8083")
REGISTRY = os.environ.get("MESH_REGISTRY_URL", "http://127.0.0.1:8082")


def config(name: str) -> ClientConfig:
    return ClientConfig(name=name, relay_url=RELAY, registry_url=REGISTRY)


def echo(ready: threading.Event) -> None:
    with BlockingMeshClient(config("echo")) as client:
        ready.set()
        for message in client.inbox(timeout=30):
            client.send(message.sender, message.payload, wait="delivered", timeout=30)
            message.ack()
            return


def main() -> None:
    ready = threading.Event()
    thread = threading.Thread(target=echo, args=(ready,))
    thread.start()
    ready.wait(30)
    with BlockingMeshClient(config("caller")) as client:
        client.send("echo", "is anybody there?")
        message = client.receive(timeout=30)
        if message is None:
            raise SystemExit("nobody answered")
        message.ack()
        print("echo says", message.payload)
    thread.join()


if __name__ == "__main__":
    main()
