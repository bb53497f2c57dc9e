"""The registry's HTTP application: which endpoint a path belongs to, and what runs beside the requests.

The endpoints are found by one look at the path, in front of Starlette: its router and its middleware cost a fifth of a
discovery. Whatever is none of them is Starlette's: the operator's pages, start and end, refusing what does not exist.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mesh_registry import render
from mesh_registry.core import Endpoint
from mesh_registry.handler import Handler, answer
from mesh_registry.metrics import OTHER
from mesh_registry.pages import pages
from mesh_registry.parts import Registry
from mesh_registry.store.protocol import StoreBusy, StoreFailed
from meshlib.logs import LogEvent

log = logging.getLogger("mesh_registry.api")

SWEEP_INTERVAL = 60.0
LAG_INTERVAL = 1.0

AGENTS = "/v1/agents/"
"""Paths that go on with a DID."""

ROUTES = (
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


def application(registry: Registry) -> ASGIApp:
    """The ASGI application. It closes the store when it stops."""
    return _Application(registry)


_Methods: TypeAlias = dict[str, Handler]


class _Application:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._paths: dict[str, _Methods] = {}
        """By path, a DID in it left out, and by method."""
        for method, path, endpoint in ROUTES:
            self._paths.setdefault(path.replace("{did}", ""), {})[method] = Handler(registry, endpoint)
        self._others = _others(registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, did = (scope["path"], "") if scope["type"] == "http" else ("", "")
        if path.startswith(AGENTS):
            did, slash, rest = path[len(AGENTS) :].partition("/")
            path = f"{AGENTS}{slash}{rest}" if did else ""
        handlers = self._paths.get(path)
        if handlers is None:
            await self._others(scope, receive, send)
        elif (handler := handlers.get(scope["method"])) is not None:
            await handler(scope, did, receive, send)
        else:
            self._registry.metrics.answered(OTHER, 405, None, "method")
            detail = render.problem("this endpoint does not know the method")
            await answer(send, 405, detail, {"Allow": ", ".join(sorted(handlers))})


def _others(registry: Registry) -> Starlette:
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

    app = Starlette(routes=pages(registry), exception_handlers={HTTPException: http_problem}, lifespan=lifespan)
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
