"""Task envelopes: the field's JSON as it is, wrapped and unwrapped, and what is done about impossible members."""

import json

import pytest

from meshlib.errors import MalformedFrame
from meshlib.wire.envelopes import (
    MAX_ARTIFACTS,
    MAX_HOPS,
    Artifact,
    Ping,
    Pong,
    TaskCancel,
    TaskProgress,
    TaskReceived,
    TaskRequest,
    TaskResponse,
    Telemetry,
    envelope_type,
    read_envelope,
    unwrapped,
    write_envelope,
)
from meshlib.wire.members import MAX_ID

TIME = "2026-01-01T00:00:00.000Z"
WRITTEN = [
    (
        TaskRequest(request_id="r1", content="do it", from_agent="parent", timestamp=TIME),
        '{"type":"task_request","message_id":"r1","request_id":"r1","content":"do it","from_agent":"parent",'
        f'"timestamp":"{TIME}"}}',
    ),
    (
        TaskReceived(request_id="r1", from_agent="analyst", accepted_at=TIME),
        f'{{"type":"task_received","request_id":"r1","from_agent":"analyst","accepted_at":"{TIME}"}}',
    ),
    (
        TaskProgress(
            request_id="r1", stage="executing", tick=2, elapsed_seconds=40.0, from_agent="analyst", timestamp=TIME
        ),
        '{"type":"task_progress","message_id":"progress-r1-2","in_reply_to_id":"r1","task_id":"r1",'
        f'"stage":"executing","tick":2,"elapsed_seconds":40.0,"from_agent":"analyst","timestamp":"{TIME}"}}',
    ),
    (
        TaskResponse(
            request_id="r1",
            content="done",
            artifacts=(Artifact("chart.png", "out/chart.png", 3),),
            telemetry=Telemetry(1, 2, 3, 4, 5),
            from_agent="analyst",
            timestamp=TIME,
        ),
        '{"type":"task_response","content":"done","ok":true,"in_reply_to":"r1","in_reply_to_id":"r1","artifacts":'
        '[{"name":"chart.png","path":"out/chart.png","size_bytes":3}],"trace":[],"telemetry":{"prompt_tokens":1,'
        '"completion_tokens":2,"total_tokens":3,"rounds":4,"tool_calls":5},"from_agent":"analyst",'
        f'"timestamp":"{TIME}"}}',
    ),
    (
        TaskCancel(request_id="r1", from_agent="parent", timestamp=TIME),
        f'{{"type":"task_cancel","request_id":"r1","from_agent":"parent","timestamp":"{TIME}"}}',
    ),
    (
        Ping(nonce="n", from_agent="a", timestamp=TIME),
        f'{{"type":"mesh:ping","nonce":"n","from_agent":"a","timestamp":"{TIME}"}}',
    ),
    (
        Pong(nonce="n", from_agent="a", timestamp=TIME),
        f'{{"type":"mesh:pong","nonce":"n","from_agent":"a","timestamp":"{TIME}"}}',
    ),
]


@pytest.mark.parametrize(("envelope", "text"), WRITTEN, ids=lambda value: type(value).__name__)
def test_written_as_in_the_field_and_read_back(envelope, text):
    assert json.dumps(write_envelope(envelope), separators=(",", ":")) == text
    assert read_envelope(json.loads(text)) == envelope


def test_members_of_ours_are_written_only_when_they_say_something():
    task = TaskRequest(request_id="r1", content="x", hops=2, timeout_seconds=9.5)
    written = write_envelope(task)
    assert (written["hops"], written["timeout_seconds"]) == (2, 9.5)
    assert read_envelope(written) == task
    failed = TaskResponse(request_id="r1", content="no", ok=False, error="busy")
    assert read_envelope(write_envelope(failed)) == failed


REQUEST = {"type": "task_request", "request_id": "r1", "content": "do it"}


@pytest.mark.parametrize(
    "payload",
    [
        REQUEST,
        json.dumps(REQUEST),
        "  \n" + json.dumps(REQUEST),
        {"type": "task_request", "request_id": "outer", "content": json.dumps(REQUEST)},
        json.dumps({"type": "task_request", "request_id": "outer", "content": json.dumps(REQUEST)}),
    ],
    ids=["plain", "as a text", "after blanks", "in another one", "both"],
)
def test_wrapping_of_the_field_is_taken_off(payload):
    assert read_envelope(payload) == TaskRequest(request_id="r1", content="do it")
    assert envelope_type(payload) == "task_request"


def test_an_answer_wrapped_in_a_request_is_an_answer():
    inner = write_envelope(TaskResponse(request_id="r1", content="done"))
    wrapped = {"type": "task_request", "request_id": "r2", "content": json.dumps(inner)}
    assert read_envelope(wrapped) == TaskResponse(request_id="r1", content="done")


def test_only_one_level_is_taken_off():
    deeper = {**REQUEST, "request_id": "r0", "content": json.dumps(REQUEST)}
    wrapped = {**REQUEST, "content": json.dumps(deeper)}
    assert read_envelope(wrapped) == TaskRequest(request_id="r0", content=json.dumps(REQUEST))


@pytest.mark.parametrize(
    "content",
    [
        '{"plan": [1, 2]}',
        "{not json",
        '["task_request"]',
        '{"type": 7}',
        "{",
        '{"type":"Point","coordinates":[1,2]}',
        '{"type":"object","properties":{}}',
    ],
)
def test_content_that_is_json_but_no_envelope_stays_content(content):
    task = read_envelope({**REQUEST, "content": content})
    assert task == TaskRequest(request_id="r1", content=content)


@pytest.mark.parametrize("kind", ["task_request", "task_response", "mesh:ping", "Point"])
@pytest.mark.parametrize("ours", [{"hops": 9}, {"timeout_seconds": 5.0}])
def test_what_has_members_of_ours_wraps_nothing(kind, ours):
    content = json.dumps({"type": kind, "content": "x", "nonce": "n"})
    assert read_envelope({**REQUEST, **ours, "content": content}) == TaskRequest(
        request_id="r1", content=content, **ours
    )


@pytest.mark.parametrize(
    "payload",
    ["hello", 7, None, b"\xff", ["task_request"], {}, {"type": 3}, {"type": "file_transfer"}, '"text"', "{"],
    ids=repr,
)
def test_anything_else_is_no_envelope(payload):
    assert read_envelope(payload) is None


def test_foreign_envelopes_show_their_type():
    assert envelope_type({"type": "peers_update", "peers": []}) == "peers_update"
    assert envelope_type("hello") is None
    assert envelope_type({"type": ["task_request"]}) is None


def test_text_that_is_no_envelope_is_left_alone():
    assert unwrapped('{"a": 1') == '{"a": 1'
    assert unwrapped("[1]") == "[1]"


def test_a_task_is_named_by_the_best_id_there_is():
    without = {"type": "task_request", "content": "x"}
    assert read_envelope({**without, "message_id": "m"}, "frame").request_id == "m"
    assert read_envelope({**without, "request_id": "", "message_id": 3}, "frame").request_id == "frame"
    answer = {"type": "task_response", "content": "x", "in_reply_to": "r9"}
    assert read_envelope(answer).request_id == "r9"


def test_content_of_another_kind_becomes_its_text():
    assert read_envelope({**REQUEST, "content": {"b": [1.0]}}).content == '{"b":[1]}'


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"request_id": "x" * (MAX_ID + 1)}, "printable"),
        ({"request_id": "a\nb"}, "printable"),
        ({"content": None}, "no content"),
    ],
)
def test_impossible_members_are_refused_by_name(change, told):
    with pytest.raises(MalformedFrame, match=told):
        read_envelope({**REQUEST, **change})


def test_a_task_without_content_can_still_be_answered():
    with pytest.raises(MalformedFrame) as malformed:
        read_envelope({"type": "task_request", "request_id": "r1"})
    assert (malformed.value.id, malformed.value.frame_type) == ("r1", "task_request")


def test_what_cannot_be_named_is_refused():
    with pytest.raises(MalformedFrame, match="names no task"):
        read_envelope({"type": "task_received"})


def test_nonsense_in_lesser_members_falls_back_to_nothing():
    odd = {**REQUEST, "hops": -3, "timeout_seconds": "soon", "from_agent": 7, "timestamp": ["now"]}
    assert read_envelope(odd) == TaskRequest(request_id="r1", content="do it")
    assert read_envelope({**REQUEST, "hops": 1e300}).hops == MAX_HOPS
    assert read_envelope({**REQUEST, "hops": True}).hops == 0
    assert read_envelope({**REQUEST, "timeout_seconds": float("inf")}).timeout_seconds is None
    answer = {
        "type": "task_response",
        "in_reply_to": "r1",
        "content": "x",
        "ok": "yes",
        "artifacts": [7, {"name": "a\x1b[31m"}] + [{"name": "b"}] * 200,
        "telemetry": {"rounds": "many", "tool_calls": 2.0, "total_tokens": float("nan")},
        "error": "",
    }
    read = read_envelope(answer)
    assert read.ok is True
    assert read.error is None
    assert read.artifacts[0] == Artifact("a[31m")
    assert len(read.artifacts) < MAX_ARTIFACTS
    assert read.telemetry == Telemetry(tool_calls=2)
