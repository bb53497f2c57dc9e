"""A configuration that cannot work is refused where it is written, in one sentence, without showing a secret."""

from typing import Any

import pytest

from meshlib.client.events import KnockReceived
from meshlib.config import ClientConfig, Limits, accept_only
from meshlib.crypto.x3dh import Dialect
from meshlib.errors import InvalidValue
from meshlib.identity import Did, Identity
from meshlib.wire.encoding import MessageId

BOB = "did:mesh:" + "b" * 32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"relay_url": "http://relay"}, "relay_url must start with ws:// or wss://"),
        ({"relay_url": "wss//user:S3CRET@relay"}, "relay_url must start with ws:// or wss://"),
        ({"relay_url": "ws://"}, "relay_url names no host"),
        ({"relay_url": "ws://:8083"}, "relay_url names no host"),
        ({"relay_url": "ws://relay:99999"}, "port of relay_url"),
        ({"relay_url": "ws://relay:abc"}, "port of relay_url"),
        ({"relay_url": "ws://[::1"}, "relay_url is no URL"),
        ({"relay_url": "ws://relay/#part"}, "relay_url has a fragment"),
        ({"relay_url": "ws://user:S3CRET@relay"}, "relay_url holds a user name or password"),
        ({"relay_url": "ws://user@relay"}, "relay_url holds a user name or password"),
        ({"relay_url": None}, "relay_url must be text"),
        ({"registry_url": "ws://registry"}, "registry_url must start with http:// or https://"),
        ({"registry_url": "http://"}, "registry_url names no host"),
        ({"registry_url": "http://registry:99999"}, "port of registry_url"),
        ({"registry_url": "https://registry#part"}, "registry_url has a fragment"),
        ({"registry_url": "https://user:S3CRET@registry"}, "registry_url holds a user name or password"),
        ({"name": 5}, "name must be text"),
        ({"did": 5, "dialect": Dialect.AGT4}, "did must be text"),
        ({"identity": "key"}, "identity must be an Identity"),
        ({"identity": b"k" * 32}, "identity must be an Identity"),
        ({"dialect": "agt-6"}, "dialect must be a Dialect"),
        ({"dialect": "agt-5"}, "dialect must be a Dialect"),
        ({"token": b"S3CRET"}, "token must be text"),
        ({"passphrase": b"S3CRET"}, "passphrase must be text"),
        ({"capabilities": "abc"}, "capabilities must be several texts"),
        ({"capabilities": ("a", 5)}, "capabilities must be several texts"),
        ({"capabilities": None}, "capabilities must be several texts"),
        ({"plaintext_peers": BOB}, "plaintext_peers must be several texts"),
        ({"plaintext_peers": frozenset({"bob"})}, "a DID looks like"),
        ({"knock_policy": None}, "knock_policy must be callable"),
        ({"knock_policy": True}, "knock_policy must be callable"),
        ({"limits": {"inbox": 5}}, "limits must be a Limits"),
        ({"timeouts": 5}, "timeouts must be a Timeouts"),
        ({"heartbeat": "often"}, "heartbeat must be a number"),
        ({"heartbeat": 90.0}, "heartbeat must lie between"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        ClientConfig(**options)
    assert words in str(refused.value)
    assert "S3CRET" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"relay_url": "wss://relay.example/mesh", "registry_url": "https://registry.example/mesh/"},
        {"relay_url": "ws://[::1]:8083", "registry_url": "http://[::1]:8082"},
        {"capabilities": ["a", "b"], "plaintext_peers": [BOB]},
        {"identity": Identity.generate(lambda size: b"a" * size), "heartbeat": 30},
        {"did": "did:agentmesh:alice", "dialect": Dialect.AGT4},
    ],
)
def test_what_can_work_is_taken(options: dict[str, Any]) -> None:
    ClientConfig(**options)


@pytest.mark.parametrize("limits", [{"inbox": 0}, {"outbox": 0}, {"inbox": -1}, {"payload": 0}])
def test_a_box_of_no_size_is_refused(limits: dict[str, int]) -> None:
    with pytest.raises(InvalidValue, match="at least 1"):
        Limits(**limits)


def test_a_list_of_friends_is_given_one_by_one() -> None:
    with pytest.raises(InvalidValue, match=r"accept_only\(\*peers\)"):
        accept_only([BOB])  # type: ignore[arg-type]
    policy = accept_only(BOB)
    assert policy(KnockReceived(Did(BOB), MessageId("k"))) is True


def test_secrets_are_not_shown() -> None:
    shown = repr(ClientConfig(token="S3CRET", passphrase="S3CRET", store="folder", proxy="http://user:S3CRET@proxy"))
    assert "S3CRET" not in shown
