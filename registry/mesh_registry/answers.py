"""One function per verb: run it, render what it came to. Nothing is decided here but the shape of answers."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from mesh_registry import render
from mesh_registry.core import CheckToken
from mesh_registry.parts import Registry
from mesh_registry.refusal import Refusal, too_soon, unauthenticated, unavailable
from mesh_registry.shown import lasts_until
from mesh_registry.verbs import (
    Delete,
    Discover,
    FindAgent,
    FindPresence,
    MarkVerified,
    PutPrekeys,
    PutRefused,
    Rate,
    RecordSession,
    Register,
    TakePrekeys,
    TooSoon,
    Touch,
    Update,
)

Answered: TypeAlias = "tuple[int, bytes]"
"""Status and body."""


async def run(registry: Registry, verb: Any) -> Answered:
    """Run a verb, or check a token.

    Raises:
        Refusal: the store would not do it; nothing has changed.
        StoreBusy, StoreFailed: it could not; nothing has changed.
    """
    return await _RUNNERS[type(verb)](registry, verb)


async def _find(registry: Registry, verb: FindAgent) -> Answered:
    shown, utc, online_for = registry.agents, registry.now().utc, registry.core.policy.online_for
    body = shown.get(verb.did, None, utc)
    if body is None:
        changes = shown.changes
        record = await registry.store.find(verb.did)
        if record is None:
            raise Refusal(404, "Agent not found")
        body = render.agent(record, utc, online_for)
        shown.keep(verb.did, None, body, changes, utc, lasts_until([record.last_seen], utc, online_for))
    return 200, body


async def _presence(registry: Registry, verb: FindPresence) -> Answered:
    record = await registry.store.find(verb.did)
    if record is None:
        raise Refusal(404, "Agent not found")
    return 200, render.presence(record, registry.now().utc, registry.core.policy.online_for)


async def _discover(registry: Registry, verb: Discover) -> Answered:
    shown, utc, policy = registry.pages, registry.now().utc, registry.core.policy
    body = shown.get(verb.capability, verb.limit, utc)
    if body is None:
        changes = shown.changes
        page = await registry.store.discover(verb)
        body = render.page(page, utc, policy.online_for)
        # A full page also tells how many there are beyond it, whom nothing here follows; an empty one costs next to
        # nothing, and strangers could ask for any number of them.
        if 0 < len(page.found) < verb.limit:
            seen = (agent.last_seen for agent in page.found)
            until = lasts_until(seen, utc, policy.online_for, policy.discoverable_for)
            shown.keep(verb.capability, verb.limit, body, changes, utc, until)
    return 200, body


async def _register(registry: Registry, verb: Register) -> Answered:
    match await registry.store.register(verb):
        case "created":
            return 201, render.body({"did": verb.did, "status": "registered"})
        case "exists":
            owner = "" if verb.legacy else "; its owner changes it with a signed PUT /v1/agents/{did}"
            raise Refusal(409, f"Agent already registered{owner}")
        case "replayed":
            raise unauthenticated("this proof has been used before: sign a fresh timestamp", "replayed")
        case "full":
            raise unavailable("this registry takes no more agents", 3600, "full")


async def _update(registry: Registry, verb: Update) -> Answered:
    record = await registry.store.update(verb)
    if record is None:
        raise Refusal(404, "Agent not found")
    return 200, render.agent(record, registry.now().utc, registry.core.policy.online_for)


async def _delete(registry: Registry, verb: Delete) -> Answered:
    if not await registry.store.delete(verb):
        raise Refusal(404, "Agent not found")
    return 204, b""


async def _put_prekeys(registry: Registry, verb: PutPrekeys) -> Answered:
    count = await registry.store.put_prekeys(verb)
    match count:
        case PutRefused.NO_AGENT:
            raise Refusal(404, count)
        case PutRefused.SEEN:
            raise unauthenticated(count)
        case PutRefused.TOO_MANY | PutRefused.NO_BUNDLE:
            raise Refusal(422, count)
        case PutRefused.OTHER_KEY:
            raise Refusal(409, count)
        case int():
            return 200, render.body({"did": verb.did, "otk_count": count})


async def _take_prekeys(registry: Registry, verb: TakePrekeys) -> Answered:
    bundle = await registry.store.take_prekeys(verb)
    if bundle is None:
        raise Refusal(404, "Pre-key bundle not found")
    if bundle.one_time is None:
        registry.metrics.bundles_without_key += 1
    else:
        registry.metrics.one_time_keys_taken += 1
    return 200, render.bundle(bundle)


async def _touch(registry: Registry, verb: Touch) -> Answered:
    seen = await registry.store.touch(verb)
    if seen is None:
        raise Refusal(404, "Agent not found")
    if isinstance(seen, TooSoon):
        raise too_soon(f"Heartbeat throttled; retry after {verb.interval:.0f}s", seen.wait)
    return 200, render.body({"did": verb.caller.did, "last_seen": render.time(seen)})


async def _rate(registry: Registry, verb: Rate) -> Answered:
    reputation = await registry.store.rate(verb)
    if reputation is None:
        raise Refusal(404, "Agent not found")
    return 200, render.body({"did": verb.did, "reputation_score": round(reputation, 4)})


async def _record_session(registry: Registry, verb: RecordSession) -> Answered:
    reputation = await registry.store.record_session(verb)
    if reputation is None:
        raise Refusal(404, "initiator_amid and receiver_amid must both be registered")
    return 200, render.session(verb.session_id, verb.outcome, reputation)


async def _check_token(registry: Registry, check: CheckToken) -> Answered:
    assert registry.tokens is not None
    claims = await registry.tokens.check(check.token)
    return await _mark_verified(
        registry, registry.core.verified(check, claims.app_id, claims.tenant_id, registry.now())
    )


async def _mark_verified(registry: Registry, verb: MarkVerified) -> Answered:
    record = await registry.store.mark_verified(verb)
    if record is None:
        raise Refusal(404, "Agent not found")
    return 200, render.verified(record)


_RUNNERS: dict[type, Callable[[Registry, Any], Awaitable[Answered]]] = {
    FindAgent: _find,
    FindPresence: _presence,
    Discover: _discover,
    Register: _register,
    Update: _update,
    Delete: _delete,
    PutPrekeys: _put_prekeys,
    TakePrekeys: _take_prekeys,
    Touch: _touch,
    Rate: _rate,
    RecordSession: _record_session,
    CheckToken: _check_token,
}
