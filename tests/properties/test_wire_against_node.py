"""Our JavaScript text encodings against JavaScript itself, on thousands of seeded cases the vectors do not hold."""

import json
import random
import struct
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from meshlib.errors import InvalidValue, MalformedFrame
from meshlib.wire.encoding import (
    atob,
    encode_uri_component,
    js_json,
    parse_json,
    timestamp,
    unb64,
    unb64url,
    websocket_url,
)

pytestmark = pytest.mark.node

SCRIPT = """
const attempt = (make) => { try { return make() } catch { return null } }
const hex = (text) => Buffer.from(text, "latin1").toString("hex")
const double = (bits) => Buffer.from(bits, "hex").readDoubleBE()
const functions = {
  string: (text) => JSON.stringify(text),
  number: (bits) => JSON.stringify(double(bits)),
  parse: (bytes) => attempt(() => JSON.stringify(JSON.parse(new TextDecoder().decode(Buffer.from(bytes, "hex"))))),
  unb64: (text) => Buffer.from(text, "base64").toString("hex"),
  unb64url: (text) => Buffer.from(text, "base64url").toString("hex"),
  atob: (text) => attempt(() => hex(atob(text))),
  uri: (text) => attempt(() => encodeURIComponent(text)),
  time: (milliseconds) => new Date(milliseconds).toISOString(),
  url: (url) => url.replace(/^http/, "ws") + "/ws",
}
let input = ""
process.stdin.on("data", (data) => { input += data })
process.stdin.on("end", () => {
  const answers = JSON.parse(input).map(([name, value]) => functions[name](value))
  process.stdout.write(JSON.stringify(answers))
})
"""

OURS: dict[str, Callable[[Any], str]] = {
    "string": js_json,
    "number": lambda bits: js_json(struct.unpack(">d", bytes.fromhex(bits))[0]),
    "parse": lambda data: js_json(parse_json(bytes.fromhex(data))),
    "unb64": lambda text: unb64(text).hex(),
    "unb64url": lambda text: unb64url(text).hex(),
    "atob": lambda text: atob(text).hex(),
    "uri": encode_uri_component,
    "time": lambda milliseconds: timestamp(milliseconds / 1000),
    "url": websocket_url,
}

JSON_PIECES = [
    "{", "}", "[", "]", ":", ",", '"', "\\", '"a"', '"1"', '"__proto__"', "0", "-", "1", "9007199254740993", "1e400",
    "0.1", ".", "e", "E+", "true", "false", "null", "NaN", "Infinity", " ", "\n", "\t", "\ufeff", "\u00a0", "\\u00",
    "\\ud83d", "\\ude00", "\\n", "/", "é", "\U0001f600", "'", "1" * 400, "0" * 30, "//", "\x00", "\u2028",
]  # fmt: skip
BASE64_PIECES = ["A", "b", "+", "/", "-", "_", "9", "=", "==", "\n", " ", "\r\n", "!", "AAAA", "é", "\t", "\x0b", "\f"]
TEXT_PIECES = ['"', "\\", "/", "\b", "\x1f", "\x7f", "\x80", "é", "\u2028", "\ufeff", "\uffff", "\ud800", "\udc00",
               "\U0001f600", "a", " ", "'", "(", "!", "~", "*", "%", "+", "\ud83d\ude00", "\0"]  # fmt: skip


def pieces(chance: random.Random, of: list[str], most: int) -> str:
    return "".join(chance.choice(of) for _ in range(chance.randrange(most)))


def cases(chance: random.Random) -> list[tuple[str, Any]]:
    made: list[tuple[str, Any]] = []
    for _ in range(2000):
        made += [
            ("string", pieces(chance, TEXT_PIECES, 8)),
            ("uri", pieces(chance, TEXT_PIECES, 6)),
            ("number", chance.randbytes(8).hex()),
            ("number", struct.pack(">d", float(f"{chance.randrange(10**4)}e{chance.randrange(-28, 28)}")).hex()),
            ("parse", pieces(chance, JSON_PIECES, 7).encode().hex()),
            ("parse", b'{"a":[%s]}' .replace(b"%s", pieces(chance, JSON_PIECES, 4).encode()).hex()),
            ("parse", (b'"' + chance.randbytes(chance.randrange(6)) + b'"').hex()),
            ("unb64", pieces(chance, BASE64_PIECES, 9)),
            ("unb64url", pieces(chance, BASE64_PIECES, 9)),
            ("atob", pieces(chance, BASE64_PIECES, 7)),
            ("time", chance.randrange(253_402_300_800_000)),
            ("url", pieces(chance, ["http", "https", "ws", "://", "relay", "/", "?", "HTTP"], 6)),
        ]  # fmt: skip
    return made


def test_ours_agrees_with_javascript() -> None:
    asked = cases(random.Random(20260301))
    done = subprocess.run(
        ["node", "-e", SCRIPT], input=json.dumps(asked), capture_output=True, text=True, check=True, timeout=60
    )
    for (name, value), theirs in zip(asked, json.loads(done.stdout), strict=True):
        try:
            ours: str | None = OURS[name](value)
        except (MalformedFrame, InvalidValue):
            ours = None
        assert ours == theirs, (name, value)
