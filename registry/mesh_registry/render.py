"""From records to the JSON of answers. Owns every member name that leaves the registry."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from mesh_registry.verbs import Agent, Bundle, Page
from meshlib.wire.encoding import b64url, timestamp

MAX_PAGE = 512 * 1024
"""Bytes of a discovery's answer; clients read no more than 1 MiB. A page that is full ends early."""

_ENCODER = msgspec.json.Encoder()


def body(members: object) -> bytes:
    """JSON bytes."""
    return _ENCODER.encode(members)


_FOUND_SIZE = 200
"""Bytes of one agent found, besides its DID and capabilities, at most."""


class _Found(msgspec.Struct):
    did: str
    capabilities: msgspec.Raw
    reputation_score: float
    last_seen: datetime
    online: bool


class _Page(msgspec.Struct):
    results: list[_Found]
    total: int


def page(found: Page, utc: float, online_for: float) -> bytes:
    """The answer of a discovery, as many agents as fit. Capabilities go out as the text they are stored as."""
    results = []
    room = MAX_PAGE
    for agent in found.found:
        capabilities = agent.capabilities.encode()
        room -= len(capabilities) + len(agent.did.encode()) + _FOUND_SIZE
        if room < 0:
            break
        results.append(
            _Found(
                agent.did,
                msgspec.Raw(capabilities),
                agent.reputation,
                datetime.fromtimestamp(agent.last_seen, UTC),  # printed by msgspec: a tenth of what timestamp() costs
                utc - agent.last_seen < online_for,
            )
        )
    return _ENCODER.encode(_Page(results, found.total))


def agent(record: Agent, utc: float, online_for: float) -> bytes:
    """Everything public about an agent: upstream's members, then ours."""
    members: dict[str, Any] = {
        "did": record.did,
        "capabilities": msgspec.Raw(record.capabilities.encode()),
        "metadata": msgspec.Raw(record.metadata.encode()),
        "registered_at": timestamp(record.registered_at),
        "last_seen": timestamp(record.last_seen),
        "reputation_score": record.reputation,
        "total_sessions": record.total_sessions,
        "successful_sessions": record.successful_sessions,
        "failed_sessions": record.failed_sessions,
        "timeout_sessions": record.timeout_sessions,
        "last_session_at": _time(record.last_session_at),
        "completion_rate": record.successful_sessions / record.total_sessions if record.total_sessions else None,
        "tier": tier(record),
        "verified_app_id": record.verified_app_id,
        "verified_tenant_id": record.verified_tenant_id,
        "verified_at": _time(record.verified_at),
        "public_key": None if record.signing_key is None else b64url(record.signing_key),
        "one_time_keys_left": record.one_time_keys_left,
        "registration": "legacy" if record.legacy else "pop",
        "online": utc - record.last_seen < online_for,
    }
    return body(members)


def tier(record: Agent) -> str:
    """``verified`` once an identity provider has vouched for the agent."""
    return "anonymous" if record.verified_at is None else "verified"


def verified(record: Agent) -> bytes:
    """The answer of a verification."""
    return body(
        {
            "did": record.did,
            "amid": record.did,
            "tier": tier(record),
            "verified_app_id": record.verified_app_id,
            "verified_tenant_id": record.verified_tenant_id,
            "verified_at": _time(record.verified_at),
        }
    )


def presence(record: Agent, utc: float, online_for: float) -> bytes:
    """When an agent was last seen."""
    online = utc - record.last_seen < online_for
    return body({"did": record.did, "last_seen": timestamp(record.last_seen), "online": online})


def bundle(record: Bundle) -> bytes:
    """A prekey bundle."""
    one_time = record.one_time
    return body(
        {
            "identity_key": b64url(record.agreement_key),
            "identity_key_ed": b64url(record.signing_key),
            "signed_pre_key": {
                "key_id": record.signed.key_id,
                "public_key": b64url(record.signed.public_key),
                "signature": b64url(record.signed.signature),
            },
            "one_time_pre_key": None
            if one_time is None
            else {"key_id": one_time.key_id, "public_key": b64url(one_time.public_key)},
        }
    )


def session(session_id: str, outcome: str, reputation: Mapping[str, float]) -> bytes:
    """The answer to a session report."""
    rounded = {did: round(score, 4) for did, score in reputation.items()}
    return body({"session_id": session_id, "outcome": outcome, "reputation": rounded})


def problem(detail: str) -> bytes:
    """The body of every refusal. Characters that are no text are shown escaped."""
    return json.dumps({"detail": detail}, ensure_ascii=not detail.isprintable()).encode("utf-8", "backslashreplace")


def time(utc: float) -> str:
    """A time as answers show it."""
    return timestamp(utc)


def _time(utc: float | None) -> str | None:
    return None if utc is None else timestamp(utc)
