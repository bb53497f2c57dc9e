"""How a request is turned down: an HTTP status, one sentence that says what to change, and a word to count it by."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Reason = Literal[
    "malformed",
    "unauthenticated",
    "clock",
    "bad_signature",
    "replayed",
    "forbidden",
    "not_found",
    "no_endpoint",
    "method",
    "conflict",
    "too_large",
    "media_type",
    "invalid",
    "too_soon",
    "address_rate",
    "full",
    "busy",
    "disk",
    "unavailable",
    "internal",
]
"""Why a request was refused, for metrics and logs. No more words than these, whatever is asked."""

_USUAL: dict[int, Reason] = {
    400: "malformed",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method",
    409: "conflict",
    413: "too_large",
    415: "media_type",
    422: "invalid",
    429: "too_soon",
    503: "unavailable",
}


class Refusal(Exception):
    """The request is answered ``{"detail": ...}`` with this status. Nothing has changed."""

    def __init__(
        self,
        status: int,
        detail: str,
        headers: Mapping[str, str] = MappingProxyType({}),
        *,
        reason: Reason | None = None,
    ) -> None:
        super().__init__(f"{status} {detail}")
        self.status = status
        self.detail = detail
        self.headers = headers
        self.reason: Reason = reason or _USUAL[status]


def unauthenticated(detail: str, reason: Reason = "unauthenticated") -> Refusal:
    """401: the request does not prove who sent it."""
    return Refusal(401, detail, {"WWW-Authenticate": "Ed25519-Timestamp"}, reason=reason)


def too_soon(detail: str, wait: float, reason: Reason = "too_soon") -> Refusal:
    """429: the same request will be fine ``wait`` seconds from now."""
    return Refusal(429, detail, {"Retry-After": str(max(1, round(wait + 0.5)))}, reason=reason)


def unavailable(detail: str, wait: float = 1, reason: Reason = "unavailable") -> Refusal:
    """503: not the request's fault; try again."""
    return Refusal(503, detail, {"Retry-After": str(max(1, round(wait)))}, reason=reason)
