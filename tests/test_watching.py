"""What operators see of a real conversation: metrics and logs of both servers. And what nobody sees in them."""

from __future__ import annotations

import base64
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from meshlib.store import open_store
from tests.watched import PAYLOAD, TOKEN, Conversation, conversation, events, serving

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Seen:
    """A conversation, and what its servers left."""

    talk: Conversation
    relay: list[str]
    registry: list[str]
    pages: str
    traffic: dict[tuple[str, str], float]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    with conversation(tmp_path_factory.mktemp("watched")) as talk:
        frames = talk.relay.metrics()["mesh_relay_frames_total"].samples
        traffic = {(s.labels["direction"], s.labels["type"]): s.value for s in frames if s.value}
        pages = talk.relay.get("/metrics").text + talk.registry.get("/metrics").text
        yield Seen(talk, talk.relay.stopped(), talk.registry.stopped(), pages, traffic)


def test_a_message_is_followed_through_the_relay_by_its_id(seen: Seen) -> None:
    alice, bob = seen.talk.dids["alice"], seen.talk.dids["bob"]
    for name in ("message_routed", "message_stored", "message_pushed", "message_delivered"):
        (event,) = [one for one in events(seen.relay, name) if one["id"] == seen.talk.message_id]
        assert (event["from"], event["to"], event["level"]) == (alice, bob, "debug")


def test_agents_come_and_go_in_the_log(seen: Seen) -> None:
    came = [event["did"] for event in events(seen.relay, "agent_connected")]
    went = [(event["did"], event["code"]) for event in events(seen.relay, "agent_disconnected")]
    assert sorted(came) == sorted(did for did, _ in went)
    assert set(came) == set(seen.talk.dids.values())
    assert {code for _, code in went} <= {1000, 1006}, "said goodbye, or was ended by SIGTERM"


def test_requests_to_the_registry_are_in_its_log(seen: Seen) -> None:
    requests = events(seen.registry, "request")
    assert {"register", "put_prekeys", "get_prekeys"} <= {event["endpoint"] for event in requests}
    assert all(event["ms"] >= 0 and event["status"] < 500 for event in requests)
    bundle = next(event for event in requests if event["endpoint"] == "get_prekeys")
    assert bundle["did"] == seen.talk.dids["bob"]


def test_the_traffic_is_that_of_the_conversation(seen: Seen) -> None:
    assert seen.traffic["in", "message"] == seen.traffic["out", "message"] == 2
    assert seen.traffic["in", "knock"] >= 1
    assert ("in", "other") not in seen.traffic


def test_no_payload_key_signature_or_token_is_in_any_log_or_page(seen: Seen) -> None:
    talk, said = seen.talk, "\n".join([*seen.relay, *seen.registry, *seen.talk.logs, seen.pages])
    secrets = {PAYLOAD.encode(), TOKEN.encode()}
    for agent in (talk.alice, talk.bob):
        store = open_store(agent.home / ".local/share/mesh" / agent.variables["MESH_NAME"], None)
        try:
            key = store.load().signing_key
        finally:
            store.close()
        assert key is not None
        secrets.add(bytes(key))
    assert len(secrets) == 4
    for secret in secrets:
        spellings = [secret.hex(), base64.b64encode(secret).decode(), base64.urlsafe_b64encode(secret).decode()]
        spellings += [secret.decode()] if secret.isascii() else []
        assert not [one for one in spellings if one.rstrip("=") in said]
    # Whatever is as long as a key in base64 or hex: signatures, proofs, ciphertexts, keys of either side.
    said = said.replace(str(talk.alice.home.parent), "")
    said = re.sub("did(:|%3A)mesh(:|%3A)[0-9a-f]{32}", "", said)
    long = re.compile(r"(?<![\w+/-])[A-Za-z0-9+/_-]{42,}")
    assert not [found for found in long.findall(said) if not re.fullmatch(r"[a-z_/.-]+", found)]


def test_a_request_is_known_by_the_id_its_sender_gave_it() -> None:
    with serving("registry", "--store", ":memory:") as registry:
        for request_id in ("7f3a-42", 'x" ' + "y" * 500):
            path = f"{registry.url}/v1/agents/did:mesh:x"
            httpx.get(path, headers={"X-Request-Id": request_id}, trust_env=False)
        first, second = events(registry.stopped(), "request")
    assert first["request_id"] == "7f3a-42"
    assert (first["reason"], first["did"]) == ("not_found", "did:mesh:x")
    assert len(second["request_id"]) == 64


@pytest.mark.parametrize("role", ["relay", "registry"])
def test_a_server_told_to_stop_says_so_before_it_does(role: str) -> None:
    with serving(role, "--store", ":memory:", "--drain-seconds", "60") as server:
        assert server.get("/health/ready").status_code == 200
        server.process.signal(signal.SIGTERM)
        while (answer := server.get("/health/ready")).status_code == 200:
            pass
        assert (answer.status_code, answer.json()) == (503, {"ready": False, "reason": "draining"})
        assert server.get("/health/live").status_code == 200
        assert server.get("/health").status_code == 200
        assert server.value(f"mesh_{role}_ready") == 0
        server.stopped()  # the second signal ends it at once
