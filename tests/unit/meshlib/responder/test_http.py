"""An endpoint as a runtime: both shapes, over a real socket and over a transport that answers as told."""

import json

import httpx
import pytest

from meshlib.errors import InvalidValue
from meshlib.identity import Did
from meshlib.responder.runtimes.http import Endpoint, HttpRuntime, Shape
from meshlib.responder.runtimes.protocol import Done, Failed, Task
from meshlib.wire.envelopes import Telemetry
from tests.runtimes.model_server import model_server

pytestmark = pytest.mark.anyio
URL = "http://agent.example/tasks"


def task(content="what is 6 times 7?"):
    return Task("r1", content, Did("did:mesh:" + "a" * 32), "parent", 2, 30.0)


async def outcome_of(answer, shape=Shape.TASK, status=200, asked=None):
    def handle(request):
        if asked is not None:
            asked.append(request)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(status, content=answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    endpoint = Endpoint(URL, shape, "fake" if shape is Shape.CHAT else None, {"authorization": "Bearer key"})
    return await HttpRuntime(endpoint, httpx.MockTransport(handle)).run(task())


async def test_an_endpoint_of_our_shape_gets_the_task_and_gives_the_answer():
    asked = []
    outcome = await outcome_of({"content": "42", "telemetry": {"total_tokens": 3, "rounds": -1}}, asked=asked)
    assert isinstance(outcome, Done)
    assert (outcome.content, outcome.telemetry) == ("42", Telemetry(total_tokens=3))
    question = json.loads(asked[0].content)
    assert (question["content"], question["hops"], question["timeout"]) == ("what is 6 times 7?", 2, 30.0)
    assert "what is 6 times 7?" in question["prompt"]
    assert asked[0].headers["authorization"] == "Bearer key"


async def test_a_model_server_that_speaks_chat_completions_is_an_endpoint_too():
    with model_server() as model:
        endpoint = Endpoint(f"{model.url}/v1/chat/completions", Shape.CHAT, "fake")
        outcome = await HttpRuntime(endpoint).run(task("[[think hm]][[say 42]]"))
    assert isinstance(outcome, Done)
    assert (outcome.content, outcome.telemetry.total_tokens) == ("<think>hm</think>42", 10)


async def test_what_the_endpoint_says_went_wrong_is_told():
    outcome = await outcome_of({"error": "the chart service is closed on Sundays"}, status=503)
    assert isinstance(outcome, Failed)
    assert outcome.reason == "the chart service is closed on Sundays"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"content": "42"}, 500),
        ({"content": "42"}, 302),
        ({"content": ""}, 200),
        ({"content": " \n"}, 200),
        ({"content": 42}, 200),
        ({}, 200),
        ([], 200),
        (b"no json", 200),
        (b"x" * 5_000_000, 200),
        (httpx.ConnectError("refused"), 200),
        (httpx.ReadTimeout("slow"), 200),
    ],
)
async def test_anything_else_is_no_answer(answer, status):
    outcome = await outcome_of(answer, status=status)
    assert isinstance(outcome, Failed)
    assert "agent.example" not in outcome.reason


@pytest.mark.parametrize("answer", [{"choices": []}, {"choices": [{"message": {"content": None}}]}, {"error": "x"}])
async def test_a_chat_without_a_message_is_no_answer(answer):
    assert isinstance(await outcome_of(answer, Shape.CHAT), Failed)


async def test_an_endpoint_that_is_not_there_is_a_failure():
    assert isinstance(await HttpRuntime(Endpoint("http://127.0.0.1:9/x")).run(task()), Failed)


@pytest.mark.parametrize("url", ["ftp://x/y", "http://", "no url"])
def test_an_endpoint_is_a_url(url):
    with pytest.raises(InvalidValue):
        Endpoint(url)
    with pytest.raises(InvalidValue, match="model"):
        Endpoint(URL, Shape.CHAT)
