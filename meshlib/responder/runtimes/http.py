"""An HTTP endpoint as a runtime: one of our own simple shape, or a model server with OpenAI's chat completions."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import msgspec

from meshlib.errors import InvalidValue
from meshlib.responder.runtimes.prompt import prompt_for
from meshlib.responder.runtimes.protocol import Done, Failed, Outcome, Task
from meshlib.wire.envelopes import Telemetry

RESPONSE_LIMIT = 4 * 1024 * 1024
"""Bytes of an endpoint's answer."""
CONNECT_SECONDS = 10.0


class Shape(StrEnum):
    """What the endpoint takes and gives."""

    TASK = "task"
    """``{"task_id", "content", "prompt", "sender", "sender_name", "hops", "timeout"}`` in, ``{"content"}`` out; with an
    optional ``"telemetry"`` as in a ``task_response``, or ``{"error": "one sentence for the peer"}``."""
    CHAT = "chat"
    """OpenAI's ``/chat/completions``."""


@dataclass(frozen=True)
class Endpoint:
    """Where, and how."""

    url: str
    shape: Shape = Shape.TASK
    model: str | None = None
    """For the shape ``chat``."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be called."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidValue("an endpoint is an http:// or https:// URL")
        if self.shape is Shape.CHAT and not self.model:
            raise InvalidValue("the shape chat needs the name of a model")


class HttpRuntime:
    """Asks an endpoint for each task.

    Args:
        endpoint: which.
        transport: for tests; ``None``: the network, with the proxies of the environment.
    """

    def __init__(self, endpoint: Endpoint, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._endpoint = endpoint
        self._transport = transport

    @property
    def name(self) -> str:
        """The endpoint's host."""
        return urlsplit(self._endpoint.url).hostname or ""

    async def run(self, task: Task) -> Outcome:
        """Ask, and read the answer within its bound. Redirects are not followed: they could lead the task anywhere."""
        timeout = httpx.Timeout(task.timeout, connect=min(task.timeout, CONNECT_SECONDS))
        try:
            async with (
                httpx.AsyncClient(timeout=timeout, transport=self._transport) as client,
                client.stream(
                    "POST", self._endpoint.url, json=self._question(task), headers=dict(self._endpoint.headers)
                ) as response,
            ):
                body = bytearray()
                async with aclosing(cast(AsyncGenerator[bytes, None], response.aiter_bytes())) as chunks:
                    async for chunk in chunks:
                        body += chunk
                        if len(body) > RESPONSE_LIMIT:
                            return Failed("the agent's answer was far too long", "the endpoint's answer has no end")
                return self._outcome(response.status_code, bytes(body))
        except httpx.HTTPError as error:
            return Failed("the agent's model cannot be reached", f"{self.name}: {type(error).__name__}")

    def _question(self, task: Task) -> dict[str, Any]:
        prompt = prompt_for(task).encode("utf-8", "replace").decode()
        if self._endpoint.shape is Shape.CHAT:
            return {"model": self._endpoint.model, "messages": [{"role": "user", "content": prompt}]}
        return {
            "task_id": task.id,
            "content": task.content.encode("utf-8", "replace").decode(),
            "prompt": prompt,
            "sender": task.sender,
            "sender_name": task.sender_name,
            "hops": task.hops,
            "timeout": task.timeout,
        }

    def _outcome(self, status: int, body: bytes) -> Outcome:
        try:
            value = msgspec.json.decode(body)
        except msgspec.DecodeError:
            value = None
        answer = value if isinstance(value, dict) else {}
        if isinstance(answer.get("error"), str) and self._endpoint.shape is Shape.TASK:
            return Failed(answer["error"], f"{self.name} answered {status}")
        if status != 200:
            return Failed("the agent's model failed", f"{self.name} answered {status}")
        text, telemetry = self._text(answer)
        if text is None:
            return Failed("the agent's model gave no answer", f"{self.name} answered in another shape")
        if not text.strip():
            return Failed("the agent gave an empty answer", f"{self.name} said nothing")
        return Done(text.strip(), telemetry)

    def _text(self, answer: dict[str, Any]) -> tuple[str | None, Telemetry]:
        if self._endpoint.shape is Shape.TASK:
            text, numbers = answer.get("content"), answer.get("telemetry")
        else:
            try:
                text = answer["choices"][0]["message"]["content"]
            except (KeyError, IndexError, TypeError):
                text = None
            numbers = answer.get("usage")
        numbers = numbers if isinstance(numbers, dict) else {}
        counted = {
            name: value
            for name in Telemetry.__struct_fields__
            if isinstance(value := numbers.get(name), int) and not isinstance(value, bool) and value >= 0
        }
        return text if isinstance(text, str) else None, Telemetry(**counted)
