"""One endpoint: an HTTP request in, an answer out, whatever happens in between.

A request object and a response object per request would cost as much as the work they wrap.
"""

import logging
import time
from collections.abc import Mapping

from starlette.types import Receive, Scope, Send

from mesh_registry import answers, render
from mesh_registry.core import Decision, Endpoint, Request
from mesh_registry.parts import Registry
from mesh_registry.proofs import Reply
from mesh_registry.refusal import Reason, Refusal, unauthenticated
from mesh_registry.store.protocol import StoreBusy, StoreFailed
from mesh_registry.verbs import Proof
from meshlib.identity import MAX_DID_LENGTH
from meshlib.logs import LogEvent

log = logging.getLogger("mesh_registry.api")

MAX_REQUEST_ID = 64
"""Characters of a client's ``X-Request-Id`` that are logged; UUIDs have 36."""

MAX_REPLY_KEPT = 4096
"""Bytes of an answer kept to be repeated. Longer ones (an agent full of metadata) are answered 409 the second time."""


class Handler:
    """Handles all requests for one endpoint. An ASGI application that is told the DID in the path besides."""

    def __init__(self, registry: Registry, endpoint: Endpoint) -> None:
        self._registry = registry
        self._endpoint = endpoint
        self._max_body = endpoint.max_body

    async def __call__(self, scope: Scope, did: str, receive: Receive, send: Send) -> None:
        headers: Mapping[str, str] = {}
        began = time.perf_counter()
        reason: Reason | None = None
        try:
            request = await self._request(scope, did, receive)
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
            log.debug(self._event(scope, did, status, seconds, reason))
        await answer(send, status, body, headers)

    def _event(self, scope: Scope, did: str, status: int, seconds: float, reason: Reason | None) -> LogEvent:
        """What is logged of a request: who asked for what and how it ended. No header but the id, no query, no body."""
        fields: dict[str, object] = {"endpoint": self._endpoint.value, "status": status, "ms": round(seconds * 1000, 2)}
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                fields["request_id"] = value[:MAX_REQUEST_ID].decode("latin-1")
        if did:
            fields["did"] = did[:MAX_DID_LENGTH]
        if reason is not None:
            fields["reason"] = reason
        return LogEvent("request", **fields, requester=_requester(scope))

    async def _request(self, scope: Scope, did: str, receive: Receive) -> Request:
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
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":  # or it took too long: :mod:`mesh_registry.http` sees to that
                raise _Gone
            body += bytes(message.get("body", b""))
            if len(body) > self._max_body:
                raise self._too_long()
            if not message.get("more_body", False):
                return body

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
            return await answers.run(self._registry, decision)
        try:
            status, body = await answers.run(self._registry, decision)
        except BaseException:
            core.used.release(proof)
            raise
        core.used.finish(proof, Reply(status, body) if len(body) <= MAX_REPLY_KEPT else None)
        return status, body


def _proof(decision: Decision) -> Proof | None:
    """The proof a change uses up. A registration's is the store's business: it is no header that could be replayed."""
    caller = getattr(decision, "caller", None)
    return None if caller is None else caller.proof


class _Gone(Exception):
    """The client hung up before it had sent its request."""


_JSON = (b"content-type", b"application/json")


async def answer(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    pairs = [] if status == 204 else [_JSON, (b"content-length", b"%d" % len(body))]
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
