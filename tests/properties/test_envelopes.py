"""Whatever a peer sends, reading an envelope returns one, nothing, or a refusal; what is written is read back."""

import contextlib
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshlib.errors import MalformedFrame
from meshlib.wire.codec import decode_payload, encode_payload
from meshlib.wire.envelopes import (
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
    write_envelope,
)
from meshlib.wire.members import MAX_ID

printable = st.characters(exclude_categories=("Cc", "Cs"))
ids = st.text(printable, min_size=1, max_size=MAX_ID)
names = st.text(printable, max_size=20)
counts = st.integers(0, 2**53)
texts = st.text(st.characters(exclude_categories=("Cs",))).filter(lambda text: not text.lstrip().startswith("{"))
common = {"from_agent": names, "timestamp": names}
envelopes = st.one_of(
    st.builds(
        TaskRequest,
        request_id=ids,
        content=texts,
        hops=st.integers(0, MAX_HOPS),
        timeout_seconds=st.none() | st.floats(0, 1e6),
        **common,
    ),
    st.builds(TaskReceived, request_id=ids, from_agent=names, accepted_at=names),
    st.builds(
        TaskProgress,
        request_id=ids,
        stage=st.sampled_from(("started", "executing")),
        tick=counts,
        elapsed_seconds=st.integers(0, 10**6).map(float),
        **common,
    ),
    st.builds(
        TaskResponse,
        request_id=ids,
        content=texts,
        ok=st.booleans(),
        error=st.none() | st.sampled_from(("busy", "failed")),
        artifacts=st.lists(st.builds(Artifact, names, names, counts), max_size=3).map(tuple),
        telemetry=st.builds(Telemetry, counts, counts, counts, counts, counts),
        **common,
    ),
    st.builds(TaskCancel, request_id=ids, **common),
    st.builds(Ping, nonce=ids, **common),
    st.builds(Pong, nonce=ids, **common),
)
kinds = st.sampled_from(
    ("task_request", "task_received", "task_progress", "task_response", "task_cancel", "mesh:ping", "mesh:pong")
)
members = st.sampled_from(
    (
        *TaskRequest.__struct_fields__,
        *TaskProgress.__struct_fields__,
        *TaskResponse.__struct_fields__,
        "in_reply_to",
        "in_reply_to_id",
        "message_id",
        "trace",
        "nonce",
    )
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | members, inner, max_size=3),
    max_leaves=8,
)


patient = settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine making envelopes takes its time


@patient
@given(envelopes)
def test_what_is_written_is_read_back_through_the_payload_codec(envelope):
    assert read_envelope(decode_payload(encode_payload(write_envelope(envelope)))) == envelope


@patient
@given(envelopes)
def test_what_a_python_peer_encodes_twice_is_the_same(envelope):
    assert read_envelope(json.dumps(write_envelope(envelope))) == envelope


@patient
@given(kinds, st.dictionaries(members, json_values, max_size=8), st.booleans())
def test_odd_members_are_read_or_refused_and_nothing_else(kind, odd, as_text):
    payload = {**odd, "type": kind}
    with contextlib.suppress(MalformedFrame):
        read_envelope(json.dumps(payload) if as_text else payload)


@patient
@given(json_values | st.binary())
def test_any_payload_is_looked_at_without_harm(payload):
    envelope_type(payload)
    with contextlib.suppress(MalformedFrame):
        read_envelope(payload)
