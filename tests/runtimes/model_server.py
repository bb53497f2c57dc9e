"""A model server that does as the prompt says: enough of three APIs for every runtime, on a port of this machine.

OpenAI chat completions and responses and Anthropic messages, each whole and streamed. What a prompt says in brackets is
done, the last such word counts:

    [[say TEXT]]         answers TEXT; without any word: the digest of what was asked
    [[think TEXT]]       thinks aloud before the answer
    [[silent]]           answers nothing
    [[status CODE]]      fails
    [[sleep SECONDS]]    takes its time
    [[call NAME JSON]]   calls a tool, if it is offered one of that name; then answers with what the tool returned
"""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_WORD = re.compile(r"\[\[(\w+)(?: (.*?))?\]\]", re.DOTALL)


@dataclass
class Request:
    """What a runtime asked."""

    path: str
    body: dict[str, Any]
    text: str
    """Everything the user said."""
    tools: list[str]
    results: list[str]
    """What tools returned."""


@dataclass
class Model:
    """What was asked so far, and where."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)

    @property
    def prompts(self) -> list[Request]:
        """Requests that asked for something."""
        return [request for request in self.requests if request.text]


@dataclass
class _Plan:
    text: str = ""
    call: tuple[str, dict[str, Any]] | None = None
    status: int = 200
    sleep: float = 0.0


def _plan(request: Request) -> _Plan:
    words = _WORD.findall(request.text)
    plan = _Plan(text=f"you said {len(request.text)} characters")
    thought = ""
    for word, value in words:
        if word == "say":
            plan.text = value
        elif word == "silent":
            plan.text = ""
        elif word == "think":
            thought = f"<think>{value}</think>"
        elif word == "status":
            plan.status = int(value)
        elif word == "sleep":
            plan.sleep = float(value)
        elif word == "call":
            name, _, arguments = value.partition(" ")
            offered = [tool for tool in request.tools if tool == name or tool.endswith(f"_{name}")]
            if request.results:
                plan.text = f"the tool returned: {request.results[-1]}"
            elif offered:
                plan.call = (offered[0], json.loads(arguments or "{}"))
            else:
                plan.text = f"no tool {name} among {sorted(request.tools)}"
    plan.text = thought + plan.text
    return plan


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(
            _text_of(one.get("text") or one.get("content") or "") for one in content if isinstance(one, dict)
        )
    return ""


def _read(path: str, body: dict[str, Any]) -> Request:
    user: list[str] = []
    results: list[str] = []
    messages = body.get("messages") or body.get("input") or []
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    for message in messages:
        kind, content = message.get("type"), message.get("content")
        if message.get("role") == "tool":
            results.append(_text_of(content))
        elif kind == "function_call_output":
            results.append(_text_of(message.get("output")))
        elif message.get("role") == "user":
            parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
            results += [_text_of(part.get("content")) for part in parts if part.get("type") == "tool_result"]
            user += [_text_of(part.get("text") or "") for part in parts if part.get("type") != "tool_result"]
    tools: list[str] = []
    for tool in body.get("tools") or []:
        inner = tool.get("tools") or [tool]
        prefix = f"{tool['name']}__" if tool.get("tools") else ""  # a namespace, as codex has them
        for one in inner:
            name = one.get("name") or (one.get("function") or {}).get("name")
            if name:
                tools.append(f"{prefix}{name}")
    return Request(path, body, "\n".join(user), tools, results)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model: Model

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._send(200, b"", "text/plain")

    def do_GET(self) -> None:
        models = {"object": "list", "data": [{"id": "fake", "object": "model", "created": 0, "owned_by": "tests"}]}
        self._send(200, json.dumps(models).encode())

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            body = json.loads(raw)
        except ValueError:
            body = {}
        path = self.path.partition("?")[0]
        request = _read(path, body if isinstance(body, dict) else {})
        self.model.requests.append(request)
        plan = _plan(request)
        if plan.sleep:
            time.sleep(plan.sleep)
        if plan.status != 200:
            failure = {"type": "error", "error": {"type": "api_error", "message": f"asked to fail with {plan.status}"}}
            self._send(plan.status, json.dumps(failure).encode())
        elif path.endswith("/chat/completions"):
            self._chat(request, plan)
        elif path.endswith("/responses"):
            self._responses(plan)
        elif path.endswith("/messages"):
            self._messages(request, plan)
        else:
            self._send(404, b"{}")

    # --- chat completions ---

    def _chat(self, request: Request, plan: _Plan) -> None:
        message: dict[str, Any] = {"role": "assistant", "content": plan.text}
        reason = "stop"
        if plan.call is not None:
            function = {"name": plan.call[0], "arguments": json.dumps(plan.call[1])}
            message = {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "call_1", "index": 0, "type": "function", "function": function}],
            }
            reason = "tool_calls"
        common = {"id": "chat_1", "created": 0, "model": "fake"}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        if not request.body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": reason}
            answer = {**common, "object": "chat.completion", "choices": [choice], "usage": usage}
            self._send(200, json.dumps(answer).encode())
            return
        chunk = {**common, "object": "chat.completion.chunk"}
        self._stream(
            [
                {**chunk, "choices": [{"index": 0, "delta": message, "finish_reason": None}]},
                {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
                {**chunk, "choices": [], "usage": usage},
            ],
            done=True,
        )

    # --- responses ---

    def _responses(self, plan: _Plan) -> None:
        base = {"id": "resp_1", "object": "response", "created_at": 0, "model": "fake", "status": "in_progress"}
        events: list[dict[str, Any]] = [{"type": "response.created", "response": {**base, "output": []}}]
        if plan.call is not None:
            arguments = json.dumps(plan.call[1])
            namespace, _, name = plan.call[0].rpartition("__")
            item = {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": name}
            if namespace:
                item["namespace"] = namespace
            whole = {**item, "arguments": arguments, "status": "completed"}
            events += [
                {"type": "response.output_item.added", "output_index": 0, "item": {**item, "arguments": ""}},
                {"type": "response.function_call_arguments.done", "item_id": "fc_1", "output_index": 0}
                | {"arguments": arguments},
                {"type": "response.output_item.done", "output_index": 0, "item": whole},
            ]
        else:
            part = {"type": "output_text", "text": plan.text, "annotations": []}
            item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
            whole = {**item, "status": "completed", "content": [part]}
            where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
            events += [
                {"type": "response.output_item.added", "output_index": 0, "item": item},
                {"type": "response.content_part.added", **where, "part": {**part, "text": ""}},
                {"type": "response.output_text.delta", **where, "delta": plan.text},
                {"type": "response.output_text.done", **where, "text": plan.text},
                {"type": "response.output_item.done", "output_index": 0, "item": whole},
            ]
        usage = {
            "input_tokens": 7,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 3,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 10,
        }
        done = {**base, "status": "completed", "output": [whole], "usage": usage}
        events.append({"type": "response.completed", "response": done})
        for number, event in enumerate(events):
            event["sequence_number"] = number
        self._stream(events, named=True)

    # --- messages ---

    def _messages(self, request: Request, plan: _Plan) -> None:
        if plan.call is not None:
            block: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "name": plan.call[0], "input": plan.call[1]}
            empty, delta = (
                {**block, "input": {}},
                {"type": "input_json_delta", "partial_json": json.dumps(plan.call[1])},
            )
            reason = "tool_use"
        else:
            block = {"type": "text", "text": plan.text}
            empty, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": plan.text}
            reason = "end_turn"
        usage = {"input_tokens": 7, "output_tokens": 3}
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "fake", "stop_sequence": None}
        if not request.body.get("stream"):
            whole = {**message, "content": [block], "stop_reason": reason, "usage": usage}
            self._send(200, json.dumps(whole).encode())
            return
        start = {**message, "content": [], "stop_reason": None, "usage": {"input_tokens": 7, "output_tokens": 0}}
        self._stream(
            [
                {"type": "message_start", "message": start},
                {"type": "content_block_start", "index": 0, "content_block": empty},
                {"type": "content_block_delta", "index": 0, "delta": delta},
                {"type": "content_block_stop", "index": 0},
                {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage},
                {"type": "message_stop"},
            ],
            named=True,
        )

    # --- bytes ---

    def _stream(self, events: list[dict[str, Any]], *, named: bool = False, done: bool = False) -> None:
        lines = []
        for event in events:
            name = f"event: {event['type']}\n" if named else ""
            lines.append(f"{name}data: {json.dumps(event)}\n\n")
        if done:
            lines.append("data: [DONE]\n\n")
        self._send(200, "".join(lines).encode(), "text/event-stream")

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        try:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:
            pass  # the runtime was stopped while it waited


@contextmanager
def model_server() -> Iterator[Model]:
    """The server, while the block lasts."""
    model = Model()
    handler = type("Handler", (_Handler,), {"model": model})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    model.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield model
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
