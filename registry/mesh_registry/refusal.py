"""How a request is turned down: an HTTP status and one sentence that says what to change."""

from collections.abc import Mapping
from types import MappingProxyType


class Refusal(Exception):
    """The request is answered ``{"detail": ...}`` with this status. Nothing has changed."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__(f"{status} {detail}")
        self.status = status
        self.detail = detail
        self.headers = headers


def unauthenticated(detail: str) -> Refusal:
    """401: the request does not prove who sent it."""
    return Refusal(401, detail, {"WWW-Authenticate": "Ed25519-Timestamp"})


def too_soon(detail: str, wait: float) -> Refusal:
    """429: the same request will be fine ``wait`` seconds from now."""
    return Refusal(429, detail, {"Retry-After": str(max(1, round(wait + 0.5)))})


def unavailable(detail: str, wait: float = 1) -> Refusal:
    """503: not the request's fault; try again."""
    return Refusal(503, detail, {"Retry-After": str(max(1, round(wait)))})
