"""HTTP: parse, ask the core, run the verb, render. Nothing is decided here but the shape of answers.

Endpoints are bare ASGI applications under Starlette's router: a request object and a response object per request
would cost as much as the work they wrap.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mesh_registry import render
from mesh_registry.core import CheckToken, Decision, Endpoint, Request
from mesh_registry.metrics import OTHER
from mesh_registry.pages import pages
from mesh_registry.parts import Registry
from mesh_registry.proofs import Reply
from mesh_registry.refusal import Reason, Refusal, too_soon, unauthenticated, unavailable
from mesh_registry.store.protocol import StoreBusy, StoreFailed
from mesh_registry.verbs import (
    Delete,
    Discover,
    FindAgent,
    FindPresence,
    MarkVerified,
    Proof,
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
from meshlib.identity import MAX_DID_LENGTH
from meshlib.logs import LogEvent

log = logging.getLogger("mesh_registry.api")

SWEEP_INTERVAL = 60.0
LAG_INTERVAL = 1.0
MAX_REQUEST_ID = 64
"""Characters of a client's ``X-Request-Id`` that are logged; UUIDs have 36."""

MAX_REPLY_KEPT = 4096
"""Bytes of an answer kept to be repeated. Longer ones (an agent full of metadata) are answered 409 the second time."""

ROUTES = (  # tried in this order, so the busiest come first
    ("GET", "/v1/agents/{did}/prekeys", Endpoint.GET_PREKEYS),
    ("PUT", "/v1/agents/{did}/prekeys", Endpoint.PUT_PREKEYS),
    ("GET", "/v1/discover", Endpoint.DISCOVER),
    ("POST", "/v1/agents", Endpoint.REGISTER),
    ("GET", "/v1/agents/{did}", Endpoint.GET_AGENT),
    ("PUT", "/v1/agents/{did}", Endpoint.UPDATE),
    ("DELETE", "/v1/agents/{did}", Endpoint.DELETE),
    ("GET", "/v1/agents/{did}/presence", Endpoint.PRESENCE),
    ("POST", "/v1/agents/{did}/heartbeat", Endpoint.HEARTBEAT),
    ("POST", "/v1/agents/{did}/reputation", Endpoint.REPUTATION),
    ("POST", "/v1/registry/reputation/session", Endpoint.SESSION),
    ("POST", "/v1/registry/verify", Endpoint.VERIFY),
)


def application(registry: Registry) -> Starlette:
    """The ASGI application. It closes the store when it stops."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(_sweep(registry)), asyncio.create_task(_feel_lag(registry))]
        try:
            registry.core.restore(await registry.store.used_proofs(registry.now().utc))
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if registry.tokens is not None:
                await registry.tokens.close()
            await registry.store.close()

    async def http_problem(_: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = {404: "there is no such endpoint", 405: "this endpoint does not know the method"}
        registry.metrics.answered(
            OTHER, error.status_code, None, "method" if error.status_code == 405 else "no_endpoint"
        )
        body = {"detail": detail.get(error.status_code) or error.detail}
        return JSONResponse(body, error.status_code, headers=error.headers)

    paths: dict[str, dict[str, _Endpoint]] = {}
    for method, path, endpoint in ROUTES:
        paths.setdefault(path, {})[method] = _Endpoint(registry, endpoint)

    app = Starlette(
        routes=[
            *(Route(path, _Methods(registry, endpoints)) for path, endpoints in paths.items()),
            *pages(registry),
        ],
        exception_handlers={HTTPException: http_problem},
        lifespan=lifespan,
    )
    # A path with a slash too many is no endpoint. A redirect would lead wherever the request's Host header says.
    app.router.redirect_slashes = False
    return app


async def _feel_lag(registry: Registry) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_INTERVAL
        await asyncio.sleep(LAG_INTERVAL)
        registry.metrics.lag.observe(max(0.0, loop.time() - due))


async def _sweep(registry: Registry) -> None:
    while True:
        await asyncio.sleep(SWEEP_INTERVAL)
        await sweep(registry)


async def sweep(registry: Registry) -> None:
    """Forget proofs and agents that have expired."""
    forgotten = 0
    try:
        while (count := await registry.store.sweep(registry.core.sweep(registry.now()))) > 0:
            forgotten += count
    except (StoreBusy, StoreFailed):
        log.warning(LogEvent("sweep_failed"))
    if forgotten:
        log.info(LogEvent("agents_forgotten", count=forgotten))


class _Methods:
    """One path: its endpoints by method."""

    def __init__(self, registry: Registry, endpoints: Mapping[str, "_Endpoint"]) -> None:
        self._registry = registry
        self._endpoints = endpoints
        self._allowed = ", ".join(sorted(endpoints))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get(scope["method"])
        if endpoint is None:
            self._registry.metrics.answered(OTHER, 405, None, "method")
            detail = render.problem("this endpoint does not know the method")
            await _answer(send, 405, detail, {"Allow": self._allowed})
        else:
            await endpoint(scope, receive, send)


class _Endpoint:
    """One endpoint as an ASGI application."""

    def __init__(self, registry: Registry, endpoint: Endpoint) -> None:
        self._registry = registry
        self._endpoint = endpoint
        self._max_body = endpoint.max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Mapping[str, str] = {}
        began = time.perf_counter()
        reason: Reason | None = None
        try:
            request = await self._request(scope, receive)
            status, body = await self._respond(request)
        except Refusal as refusal:
            status, body, headers, reason = (
                refusal.status,
                render.problem(refusal.detail),
                refusal.headers,
                refusal.reason,
            )
        except StoreBusy:
            status, body, headers = 503, render.problem("too many requests wait for the disk"), {"Retry-After": "1"}
            reason = "busy"
        except StoreFailed:
            status, body, headers = 503, render.problem("the registry cannot store it"), {"Retry-After": "10"}
            reason = "disk"
        except _Gone:
            return
        except Exception:
            log.exception(LogEvent("request_failed", endpoint=self._endpoint.value))
            status, body, reason = 500, render.problem("internal error"), "internal"
        seconds = time.perf_counter() - began
        self._registry.metrics.answered(self._endpoint.value, status, seconds, reason)
        if log.isEnabledFor(logging.DEBUG):
            log.debug(self._event(scope, status, seconds, reason))
        await _answer(send, status, body, headers)

    def _event(self, scope: Scope, status: int, seconds: float, reason: Reason | None) -> LogEvent:
        """What is logged of a request: who asked for what and how it ended. No header but the id, no query, no body."""
        fields: dict[str, object] = {"endpoint": self._endpoint.value, "status": status, "ms": round(seconds * 1000, 2)}
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                fields["request_id"] = value[:MAX_REQUEST_ID].decode("latin-1")
        if (did := scope["path_params"].get("did")) is not None:
            fields["did"] = did[:MAX_DID_LENGTH]
        if reason is not None:
            fields["reason"] = reason
        return LogEvent("request", **fields, requester=_requester(scope))

    async def _request(self, scope: Scope, receive: Receive) -> Request:
        authorization = bound = content_type = length = None
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value
            elif name == b"mesh-request-signature":
                bound = value
            elif name == b"content-type":
                content_type = value
            elif name == b"content-length":
                length = value
        did: str = scope["path_params"].get("did", "")
        if len(did) > MAX_DID_LENGTH:
            raise Refusal(404, "Agent not found")
        body = b""
        if self._max_body:
            if content_type is not None and content_type.split(b";")[0].strip().lower() != b"application/json":
                raise Refusal(415, "Content-Type must be application/json")
            if length is not None and length.isdigit() and int(length) > self._max_body:
                raise self._too_long()
            body = await self._body(receive)
        query = scope["query_string"].decode("latin-1")
        path = scope["raw_path"].decode("latin-1")
        return Request(
            endpoint=self._endpoint,
            method=scope["method"],
            target=f"{path}?{query}" if query else path,
            did=did,
            query=query,
            body=body,
            authorization=_text(authorization),
            bound=_text(bound),
            requester=_requester(scope),
        )

    async def _body(self, receive: Receive) -> bytes:
        try:
            async with asyncio.timeout(self._registry.limits.body_seconds):
                body = b""
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    body += bytes(message.get("body", b""))
                    if len(body) > self._max_body:
                        raise self._too_long()
                    if not message.get("more_body", False):
                        return body
        except TimeoutError as error:
            raise Refusal(408, "the body did not arrive in time", {"Connection": "close"}) from error

    def _too_long(self) -> Refusal:
        return Refusal(413, f"the body must have at most {self._max_body} bytes", {"Connection": "close"})

    async def _respond(self, request: Request) -> tuple[int, bytes]:
        registry = self._registry
        core = registry.core
        needed = core.account_needed(request)
        account = None if needed is None else await registry.store.account(needed)
        try:
            return await self._carry_out(core.decide(request, account, registry.now()))
        finally:
            unsaved = core.used.take_unsaved()
            if unsaved:
                await self._record(unsaved)

    async def _record(self, proofs: list[Proof]) -> None:
        """Record, before the answer, signatures that changed nothing. A disk that refuses keeps nobody from reading."""
        try:
            await self._registry.store.record_proofs(proofs)
        except (StoreBusy, StoreFailed):
            log.warning(LogEvent("proofs_not_recorded", count=len(proofs)))

    async def _carry_out(self, decision: Decision) -> tuple[int, bytes]:
        core = self._registry.core
        if isinstance(decision, Reply):
            return decision.status, decision.body
        proof = _proof(decision)
        if proof is None:
            return await self._run(decision)
        try:
            status, body = await self._run(decision)
        except BaseException:
            core.used.release(proof)
            raise
        core.used.finish(proof, Reply(status, body) if len(body) <= MAX_REPLY_KEPT else None)
        return status, body

    async def _run(self, decision: Decision) -> tuple[int, bytes]:
        return await _RUNNERS[type(decision)](self._registry, decision)


def _proof(decision: Decision) -> Proof | None:
    """The proof a change uses up. A registration's is the store's business: it is no header that could be replayed."""
    caller = getattr(decision, "caller", None)
    return None if caller is None else caller.proof


class _Gone(Exception):
    """The client hung up before it had sent its request."""


async def _answer(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    pairs = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 204:
        pairs, body = [], b""
    pairs += [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _text(header: bytes | None) -> str | None:
    if header is None:
        return None
    try:
        return header.decode()
    except UnicodeDecodeError as error:
        raise unauthenticated("a header is not UTF-8") from error


def _requester(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


# --- one function per verb ------------------------------------------------------------------------------------------

Answered = tuple[int, bytes]


async def _find(registry: Registry, verb: FindAgent) -> Answered:
    record = await registry.store.find(verb.did)
    if record is None:
        raise Refusal(404, "Agent not found")
    return 200, render.agent(record, registry.now().utc, registry.core.policy.online_for)


async def _presence(registry: Registry, verb: FindPresence) -> Answered:
    record = await registry.store.find(verb.did)
    if record is None:
        raise Refusal(404, "Agent not found")
    return 200, render.presence(record, registry.now().utc, registry.core.policy.online_for)


async def _discover(registry: Registry, verb: Discover) -> Answered:
    found = await registry.store.discover(verb)
    return 200, render.page(found, registry.now().utc, registry.core.policy.online_for)


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
