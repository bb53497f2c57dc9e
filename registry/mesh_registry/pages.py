"""What the registry says to whoever operates it: health, metrics, and the description of its interface."""

import contextlib
import math
from typing import Literal

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mesh_registry import metrics
from mesh_registry.openapi import document
from mesh_registry.parts import Registry
from mesh_registry.store.protocol import StoreBusy, StoreFailed
from meshlib.prometheus import CONTENT_TYPE

MIN_FREE = 32 * 1024 * 1024
"""Bytes left on the store's disk below which the registry is not ready; a write-ahead log takes some of them."""

CHECK_INTERVAL = 1.0
"""Seconds between two writes that find out whether a disk that failed takes changes again."""

NotReady = Literal["draining", "disk_full", "commit_failed"]
"""Why no more requests should be sent here."""


def pages(registry: Registry) -> list[Route]:
    """The routes of these pages."""
    readiness = _Readiness(registry)
    openapi = document(registry.version)

    async def health(_: HttpRequest) -> Response:
        reason = await readiness.reason()
        return JSONResponse(
            {
                "status": "healthy" if registry.store.vitals.healthy else "degraded",
                "service": "mesh-registry",
                "version": registry.version,
                "agents": await registry.store.count(),
                **_told(reason),
            }
        )

    async def live(_: HttpRequest) -> Response:
        return JSONResponse({"live": True})

    async def ready(_: HttpRequest) -> Response:
        reason = await readiness.reason()
        return JSONResponse(_told(reason), 200 if reason is None else 503)

    async def show(_: HttpRequest) -> Response:
        store = registry.store
        standing = metrics.Standing(
            version=registry.version,
            started=registry.started,
            now=registry.now(),
            agents=await store.count(),
            proofs=len(registry.core.used),
            supply=store.supply(),
            free=store.free(),
            ready=await readiness.reason() is None,
        )
        text = metrics.prometheus(registry.metrics, store.vitals, standing)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    async def describe(_: HttpRequest) -> Response:
        return JSONResponse(openapi)

    return [
        Route("/health", health),
        Route("/health/live", live),
        Route("/health/ready", ready),
        Route("/metrics", show),
        Route("/openapi.json", describe),
    ]


def _told(reason: NotReady | None) -> dict[str, object]:
    return {"ready": reason is None, "reason": reason}


class _Readiness:
    """Whether requests should be sent here.

    After a failure no balancer sends any, and so nothing would show that the disk works again: then this writes itself.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._checked_at = -math.inf

    async def reason(self) -> NotReady | None:
        """Why not, or None."""
        store, now = self._registry.store, self._registry.now().monotonic
        if self._registry.draining:
            return "draining"
        free = store.free()
        if free is not None and free < MIN_FREE:
            return "disk_full"
        if not store.vitals.healthy and now - self._checked_at >= CHECK_INTERVAL:
            self._checked_at = now
            with contextlib.suppress(StoreBusy, StoreFailed):
                await store.check()
        return None if store.vitals.healthy else "commit_failed"
