"""Request bodies, parsed once into frozen values. Whatever bytes arrive, they become a value or a Refusal.

400 means that the bytes are no JSON, 422 that the JSON is not what the endpoint takes.
"""

import binascii
import json
import re
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta, Struct, ValidationError, convert, field

from mesh_registry.refusal import Refusal
from mesh_registry.verbs import MAX_ONE_TIME_KEYS, OneTimePrekey, Outcome, SignedPrekey
from meshlib.errors import MalformedFrame
from meshlib.wire.encoding import MAX_DEPTH, check_depth

MAX_BODY = 64 * 1024
MAX_PREKEYS_BODY = 256 * 1024
"""Bytes. 200 one-time keys with their ids make some 20 KiB; the rest is room for members we do not know."""

MAX_CAPABILITIES = 64
MAX_CAPABILITY = 256
"""Characters; a display name is a capability too."""

MAX_CAPABILITIES_SIZE = 4096
"""Bytes of all capabilities of an agent. Whoever finds it by one of them is sent them all."""

MAX_METADATA_ENTRIES = 64
MAX_METADATA_KEY = 128
MAX_METADATA_VALUE = 4096
MAX_METADATA = 16 * 1024
"""Bytes of all metadata as JSON. Every look-up of the agent carries them."""

MAX_TEXT = 1024
MAX_TOKEN = 16 * 1024
MAX_KEY_ID = 2**32 - 1
"""Ids travel on as unsigned 32 bit numbers in a knock's ``otk``."""

KEY_SIZE = 32
SIGNATURE_SIZE = 64

Text = Annotated[str, Meta(max_length=MAX_TEXT)]
KeyId = Annotated[int, Meta(ge=0, le=MAX_KEY_ID)]
Capabilities = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=MAX_CAPABILITY)]], Meta(max_length=MAX_CAPABILITIES)
]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=MAX_METADATA_KEY)], Annotated[str, Meta(max_length=MAX_METADATA_VALUE)]],
    Meta(max_length=MAX_METADATA_ENTRIES),
]


class RegisterBody(Struct, frozen=True):
    """``POST /v1/agents``: with a proof (agt-5) or with a chosen DID (agt-4)."""

    public_key: Text
    did: Text | None = None
    proof: Text | None = None
    proof_timestamp: Text | None = None
    capabilities: Capabilities = field(default_factory=list)
    metadata: Metadata = field(default_factory=dict)


class UpdateBody(Struct, frozen=True):
    """``PUT /v1/agents/{did}``."""

    capabilities: Capabilities | None = None
    metadata: Metadata | None = None


class SignedPrekeyBody(Struct, frozen=True):
    """A signed prekey on its way in."""

    key_id: KeyId
    public_key: Text
    signature: Text


class OneTimePrekeyBody(Struct, frozen=True):
    """A one-time prekey on its way in."""

    key_id: KeyId
    public_key: Text


class PrekeysBody(Struct, frozen=True):
    """``PUT /v1/agents/{did}/prekeys``."""

    identity_key: Text
    identity_key_ed: Text
    signed_pre_key: SignedPrekeyBody | None = None
    one_time_pre_keys: Annotated[list[OneTimePrekeyBody], Meta(max_length=MAX_ONE_TIME_KEYS)] = field(
        default_factory=list
    )
    mode: Literal["replace", "merge"] = "replace"

    def signed(self) -> SignedPrekey | None:
        """The signed prekey, decoded."""
        body = self.signed_pre_key
        if body is None:
            return None
        key = key_of(body.public_key, "signed_pre_key.public_key")
        return SignedPrekey(body.key_id, key, decode(body.signature, "signed_pre_key.signature", SIGNATURE_SIZE))

    def one_time(self) -> tuple[OneTimePrekey, ...]:
        """The one-time prekeys, decoded; no id and no key twice."""
        keys = tuple(
            OneTimePrekey(body.key_id, key_of(body.public_key, f"one_time_pre_keys[{index}].public_key"))
            for index, body in enumerate(self.one_time_pre_keys)
        )
        if len({key.key_id for key in keys}) < len(keys):
            raise Refusal(422, "two one_time_pre_keys have the same key_id")
        if len({key.public_key for key in keys}) < len(keys):
            raise Refusal(422, "two one_time_pre_keys are the same public_key")
        return keys


class ReputationBody(Struct, frozen=True):
    """``POST /v1/agents/{did}/reputation``."""

    score: Annotated[float, Meta(ge=0, le=1)]
    reason: Text = ""


class SessionBody(Struct, frozen=True):
    """``POST /v1/registry/reputation/session``."""

    session_id: Text
    initiator_amid: Text
    receiver_amid: Text
    outcome: Outcome
    reporter_amid: Text
    intent: Text = ""
    started_at: Text = ""
    timestamp: Text = ""
    signature: Text = ""


class VerifyBody(Struct, frozen=True):
    """``POST /v1/registry/verify``."""

    amid: Text
    verification_token: Annotated[str, Meta(min_length=1, max_length=MAX_TOKEN)]


B = TypeVar("B", bound=Struct)


def parse(body: bytes, kind: type[B]) -> B:
    """Read a JSON body.

    Raises:
        Refusal: 400 for what is not JSON in UTF-8, names a member twice or nests endlessly; 422 for JSON of another
            shape. The sentence names the member, never its value.
    """
    value = _json(body)
    if not isinstance(value, dict):
        raise Refusal(422, "the body must be a JSON object")
    try:
        return convert(value, kind)
    except ValidationError as error:
        raise Refusal(422, _member(error)) from error


def _json(body: bytes) -> Any:
    try:
        value = json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_constant)
        if body.count(b"{") + body.count(b"[") > MAX_DEPTH:
            check_depth(value)
        if b"\\u" in body:
            # Half a surrogate pair is legal in JSON and nowhere after it: neither in UTF-8 nor in the store.
            json.dumps(value, ensure_ascii=False).encode()
    except Refusal:
        raise
    except UnicodeError as error:
        raise Refusal(400, "the body is not UTF-8, or holds half a surrogate pair") from error
    except (RecursionError, MalformedFrame) as error:
        raise Refusal(400, "the body is nested too deeply") from error
    except ValueError as error:
        raise Refusal(400, "the body is not JSON") from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Parsers disagree about which of two equal members counts: what one of them checks, another would use.
    value = dict(pairs)
    if len(value) < len(pairs):
        raise Refusal(400, "the body names a member twice")
    return value


def _constant(name: str) -> Any:
    raise Refusal(400, f"{name} is not JSON")


def _member(error: ValidationError) -> str:
    what, _, where = str(error).partition(" - at `$")
    where = where.strip("`").lstrip(".")
    return f"{where}: {what}" if where else what


_BASE64 = re.compile(r"[A-Za-z0-9_+/-]*={0,2}\Z")


def decode(text: str, name: str, size: int) -> bytes:
    """Base64 in either alphabet, padded or not, of exactly ``size`` bytes.

    Raises:
        Refusal: 422, naming the member.
    """
    if _BASE64.match(text):
        bare = text.rstrip("=").replace("-", "+").replace("_", "/")  # a quarter of what translate() costs
        try:
            value = binascii.a2b_base64(bare + "=" * (-len(bare) % 4))
        except binascii.Error:
            value = b""
        if len(value) == size:
            return value
    raise Refusal(422, f"{name} must be base64url of {size} bytes")


def key_of(text: str, name: str) -> bytes:
    """A public key of 32 bytes."""
    return decode(text, name, KEY_SIZE)


def capabilities_of(capabilities: list[str]) -> tuple[str, ...]:
    """Without repetitions, in the order given.

    Raises:
        Refusal: 422 for a control character, which would forge lines in whatever prints it, or for too long a list.
    """
    if any(_has_control(capability) for capability in capabilities):
        raise Refusal(422, "capabilities must not hold control characters")
    distinct = tuple(dict.fromkeys(capabilities))
    if sum(len(capability.encode()) for capability in distinct) > MAX_CAPABILITIES_SIZE:
        raise Refusal(422, f"capabilities must have at most {MAX_CAPABILITIES_SIZE} bytes in all")
    return distinct


def metadata_of(metadata: dict[str, str]) -> str:
    """As JSON text.

    Raises:
        Refusal: 422 when it is too long, or the display name holds control characters.
    """
    if _has_control(metadata.get("display_name", "")):
        raise Refusal(422, "metadata.display_name must not hold control characters")
    text = json.dumps(metadata, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode()) > MAX_METADATA:
        raise Refusal(422, f"metadata must have at most {MAX_METADATA} bytes as JSON")
    return text


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _has_control(text: str) -> bool:
    return _CONTROL.search(text) is not None
