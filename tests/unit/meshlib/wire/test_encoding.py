"""How values become text. The recorded cases are in vectors/wire/js_encoding.json; here is what they leave out."""

import math
import uuid

import pytest

from meshlib.errors import InvalidValue, MalformedFrame
from meshlib.wire.encoding import (
    MAX_DEPTH,
    atob,
    b64,
    b64url,
    encode_uri_component,
    js_json,
    message_id,
    parse_json,
    parse_timestamp,
    timestamp,
    unb64,
    unb64url,
    websocket_url,
)


def nested(depth: int) -> object:
    value: object = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize("text", ["-_-_", "+/+/", "+_-/", "+/\r\n +/", "+/+/AA==", "+/+/AA"])
def test_base64_is_read_in_every_form_peers_write(text: str) -> None:
    assert unb64(text).startswith(b"\xfb\xff\xbf")
    assert unb64url(text) == unb64(text)


def test_base64_written_is_standard_and_padded() -> None:
    assert b64(b"\xfb\xff\xbf\x00") == "+/+/AA=="


def test_base64url_written_has_no_padding() -> None:
    assert b64url(b"\xfb\xff\xbf\x00") == "-_-_AA"


@pytest.mark.parametrize("text", ["-_-_", "AAAA====", "A", "AA=A", "AA!A", "====", "é"])
def test_atob_refuses_what_browsers_refuse(text: str) -> None:
    with pytest.raises(MalformedFrame):
        atob(text)


def test_nesting_up_to_the_limit_is_written_and_read() -> None:
    text = js_json(nested(MAX_DEPTH))
    assert js_json(parse_json(text)) == text


def test_nesting_beyond_the_limit_is_refused_both_ways() -> None:
    with pytest.raises(InvalidValue):
        js_json(nested(MAX_DEPTH + 1))
    with pytest.raises(MalformedFrame):
        parse_json("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))


@pytest.mark.parametrize("unit", ["[", '{"a":', '[{"a":'])
def test_a_megabyte_of_nesting_is_refused_without_a_crash(unit: str) -> None:
    with pytest.raises(MalformedFrame):
        parse_json(unit * (1_000_000 // len(unit)))


def test_wide_values_are_no_deep_ones() -> None:
    assert len(parse_json("[" + "[]," * 5000 + "{}]")) == 5001


def test_a_cycle_is_refused() -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    with pytest.raises(InvalidValue):
        js_json(cycle)


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, object(), 1j, {"a": b""}, [set()], {1: "number as key"}])
def test_what_has_no_json_form_is_refused(value: object) -> None:
    with pytest.raises(InvalidValue):
        js_json(value)


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 10**400])
def test_an_integer_that_would_arrive_as_another_is_refused(value: int) -> None:
    with pytest.raises(InvalidValue):
        js_json(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(2**53, "9007199254740992"), (10**21, "1e+21"), (10**20, "100000000000000000000"), (2**60, "1152921504606847000")],
)
def test_an_integer_that_is_a_double_is_printed_as_javascript_does(value: int, text: str) -> None:
    assert js_json(value) == text
    assert parse_json(text) == value


def test_booleans_are_no_numbers() -> None:
    assert js_json([True, 1, False, 0]) == "[true,1,false,0]"


def test_keys_that_are_array_indexes_come_first() -> None:
    keys = ["b", "10", "9", "4294967294", "4294967295", "-1", "01", "1.0", "٣"]
    printed = js_json(dict.fromkeys(keys, 0))
    assert list(parse_json(printed)) == ["9", "10", "4294967294", "b", "4294967295", "-1", "01", "1.0", "٣"]


def test_two_halves_of_a_pair_are_printed_as_one_character() -> None:
    assert js_json("\ud83d\ude00") == js_json("\U0001f600") == '"\U0001f600"'


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "[NaN]", '{"a":NaN}', "nan", "1_000", "\u0661"])
def test_only_json_numbers_are_numbers(text: str) -> None:
    with pytest.raises(MalformedFrame):
        parse_json(text)


def test_thousands_of_digits_are_read_as_javascript_reads_them() -> None:
    assert parse_json("9" * 5000) == math.inf
    assert parse_json("-" + "9" * 5000) == -math.inf
    assert parse_json("1" + "0" * 30) == int(1e30)


def test_a_byte_order_mark_is_dropped_from_bytes_and_refused_in_text() -> None:
    assert parse_json(b"\xef\xbb\xbf1") == 1
    with pytest.raises(MalformedFrame):
        parse_json("\ufeff1")


@pytest.mark.parametrize(
    ("utc", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1.0004, "1970-01-01T00:00:01.000Z"),
        (1.9996, "1970-01-01T00:00:02.000Z"),
        (253402300799.999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_timestamps_have_milliseconds(utc: float, text: str) -> None:
    assert timestamp(utc) == text


@pytest.mark.parametrize("utc", [-0.001, 253402300800, 253402300799.9999, math.nan, math.inf])
def test_a_time_outside_four_digit_years_is_refused(utc: float) -> None:
    with pytest.raises(InvalidValue):
        timestamp(utc)


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-03-01T12:00:00.000Z", 1772366400.0),
        ("2026-03-01T12:00:00Z", 1772366400.0),
        ("2026-03-01T13:00:00.500+01:00", 1772366400.5),
        ("2026-03-01T12:00:00.123456+00:00", 1772366400.123456),
    ],
)
def test_a_timestamp_that_names_its_offset_is_read(text: str, utc: float) -> None:
    assert parse_timestamp(text) == utc


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-03-01T12:00:00",
        "2026-03-01T12:00:00.000",
        "2026-03-01",
        "2026-03-01 12:00:00Z",
        "2026-02-29T12:00:00Z",
        "2026-03-01T24:00:01Z",
        "2026-03-01T12:00:00z",
        "2026-03-01T12:00:00.Z",
        "2026-03-01T12:00:00.000Z\n",
        "2026-03-01T12:00:00+99:00",
        "20260301T120000Z",
        "1772366400",
        "٢٠٢٦-03-01T12:00:00Z",
    ],
)
def test_a_naive_or_odd_timestamp_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue):
        parse_timestamp(text)


def test_a_message_id_is_a_version_4_uuid_of_sixteen_random_bytes() -> None:
    drawn: list[int] = []

    def entropy(size: int) -> bytes:
        drawn.append(size)
        return b"\xff" * size

    parsed = uuid.UUID(message_id(entropy))
    assert (parsed.version, parsed.variant, drawn) == (4, uuid.RFC_4122, [16])


def test_half_a_surrogate_pair_is_no_part_of_a_url() -> None:
    with pytest.raises(InvalidValue):
        encode_uri_component("did:\ud800")


def test_the_websocket_address_is_plain_concatenation() -> None:
    assert websocket_url("https://relay.test/") == "wss://relay.test//ws"
