"""Frames are values: equal by content, and nobody changes them."""

import msgspec
import pytest

from meshlib.wire import frames
from meshlib.wire.codec import decode
from meshlib.wire.frames import Ack, Knock, Message, MessageHeader

FRAME_TYPES = [
    value for value in vars(frames).values() if isinstance(value, type) and issubclass(value, msgspec.Struct)
]


@pytest.mark.parametrize("kind", [kind for kind in FRAME_TYPES if kind is not msgspec.Struct])
def test_every_frame_is_frozen(kind: type[msgspec.Struct]) -> None:
    assert kind.__struct_config__.frozen


def test_frames_are_equal_by_content() -> None:
    header = MessageHeader(b"k" * 32, 0, 1)
    assert Message("a", "b", "i", "t", header, b"c") == Message(
        "a", "b", "i", "t", MessageHeader(b"k" * 32, 0, 1), b"c"
    )
    assert Ack("1") != Ack("2")


def test_two_knocks_do_not_share_an_intent() -> None:
    first, second = Knock("a", "b", "i", "t"), Knock("a", "b", "i", "t")
    first.intent["action"] = "other"
    assert second.intent == {"action": "establish_session"}


def test_a_frame_is_one_of_the_union() -> None:
    assert isinstance(decode('{"type":"ack","id":"i"}'), frames.Frame)
    assert not isinstance(decode('{"type":"ack","id":"i"}'), frames.Routed)


@pytest.mark.parametrize(
    "frame",
    [
        frames.Connect("did:mesh:a", None, None, None, (), "S3CRET"),
        frames.PlaintextMessage("did:mesh:a", "did:mesh:b", "i", "t", b"S3CRET"),
        frames.PendingMessages((frames.PlaintextMessage("did:mesh:a", "did:mesh:b", "i", "t", b"S3CRET"),)),
    ],
)
def test_no_repr_shows_a_token_or_a_payload(frame: msgspec.Struct) -> None:
    assert "S3CRET" not in repr(frame)
    assert type(frame).__name__ in repr(frame)
