"""State at rest: a versioned encoding of sessions, prekeys and the identity, and sealing under a passphrase.

Owns the bytes; leaves where they are kept and when they are written to :mod:`meshlib.store`. Every record is a
msgpack array ``[kind, version, body]``. What cannot be read is a :class:`~meshlib.errors.StoreError`, whatever the
bytes are: a store is input like any other, and a record from it never becomes half a session.

Layout of a session, version 1::

    [id, role, dialect, initiator, responder, ik_initiator, ik_responder, state]
    state = ["waiting", own, root]
          | ["opened", own, remote, root, pn, chain, n]
          | ["established", own, remote, root, pn, chain, n, chain, n, skipped, retired]
    skipped = [[ratchet key, [n, key, n, key, ...]], ...]      runs in the order of skipping
"""

import unicodedata
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any, TypeVar

import msgpack  # type: ignore[import-untyped]

from meshlib.crypto.keys import Ed25519Private, Entropy, SecretBytes, X25519Private, X25519Public
from meshlib.crypto.prekeys import OneTimePrekey, SignedPrekey
from meshlib.crypto.primitives import (
    LONG_NONCE_SIZE,
    SALT_SIZE,
    SIGNATURE_SIZE,
    TAG_SIZE,
    seal_record,
    stretch,
    unseal_record,
)
from meshlib.crypto.ratchet import (
    MAX_KEPT,
    MAX_NUMBER,
    MAX_RETIRED,
    Backlog,
    Chain,
    Established,
    Opened,
    State,
    Turn,
    Waiting,
)
from meshlib.crypto.x3dh import Dialect
from meshlib.errors import InvalidValue, MeshError, NotAuthentic, StoreError
from meshlib.identity import Identity, parse_did
from meshlib.session import Role, Session, Terms

VERSION = 1
MAX_RECORD = 1 << 20
"""Bytes. A session with every skipped key there can be takes under 100 kB."""

_KEY_SIZE = 32
_T = TypeVar("_T")


# --- records --------------------------------------------------------------------------------------------------------


def pack_session(session: Session) -> bytes:
    """A session as bytes, with every key in it: seal them or keep them where only their owner reads."""
    terms = session.terms
    body = [
        terms.id,
        terms.role.value,
        terms.dialect.value,
        terms.initiator,
        terms.responder,
        bytes(terms.initiator_key),
        bytes(terms.responder_key),
        _state_to_list(session.state),
    ]
    return _pack("session", body)


def unpack_session(data: bytes) -> Session:
    """The session that :func:`pack_session` packed.

    Raises:
        StoreError: ``data`` is no session, or one of a later version.
    """
    return _unpack("session", data, _session)


def pack_signed_prekey(prekey: SignedPrekey) -> bytes:
    """A signed prekey as bytes."""
    return _pack("signed-prekey", [prekey.key_id, bytes(prekey.private), prekey.signature])


def unpack_signed_prekey(data: bytes) -> SignedPrekey:
    """The prekey that :func:`pack_signed_prekey` packed. Raises StoreError."""
    return _unpack("signed-prekey", data, _signed_prekey)


def pack_one_time_prekey(prekey: OneTimePrekey) -> bytes:
    """A one-time prekey as bytes."""
    return _pack("one-time-prekey", [prekey.key_id, bytes(prekey.private)])


def unpack_one_time_prekey(data: bytes) -> OneTimePrekey:
    """The prekey that :func:`pack_one_time_prekey` packed. Raises StoreError."""
    return _unpack("one-time-prekey", data, _one_time_prekey)


def pack_identity(identity: Identity) -> bytes:
    """An identity as bytes."""
    return _pack("identity", [bytes(identity.signing_key)])


def unpack_identity(data: bytes) -> Identity:
    """The identity that :func:`pack_identity` packed. Raises StoreError."""
    return _unpack("identity", data, _identity)


def _pack(kind: str, body: list[Any]) -> bytes:
    packed: bytes = msgpack.packb([kind, VERSION, body])
    return packed


def _unpack(kind: str, data: bytes, read: Callable[[list[Any]], _T]) -> _T:
    """Decode a record and hand its body to ``read``, whose complaints all mean that the record is damaged."""
    if len(data) > MAX_RECORD:
        raise StoreError(f"a stored {kind} is larger than {MAX_RECORD} bytes")
    try:
        record = msgpack.unpackb(data, raw=False, strict_map_key=True, max_ext_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise StoreError(f"a stored {kind} is damaged") from error
    if not isinstance(record, list) or len(record) != 3 or record[0] != kind or type(record[1]) is not int:
        raise StoreError(f"a stored record is not a {kind}")
    if record[1] != VERSION:
        raise StoreError(f"a stored {kind} has version {record[1]}; this meshlib reads version {VERSION}")
    try:
        return read(record[2])
    except (MeshError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"a stored {kind} is damaged") from error


def _session(body: list[Any]) -> Session:
    session_id, role, dialect, initiator, responder, initiator_key, responder_key, state = _list(body, 8)
    terms = Terms(
        _bytes(session_id, 32),
        Role(role),
        Dialect(dialect),
        parse_did(_text(initiator)),
        parse_did(_text(responder)),
        X25519Public(initiator_key),
        X25519Public(responder_key),
    )
    return Session(terms, terms.associated_data(), _state_from_list(state))


def _signed_prekey(body: list[Any]) -> SignedPrekey:
    key_id, private, signature = _list(body, 3)
    return SignedPrekey(_number(key_id), X25519Private(private), _bytes(signature, SIGNATURE_SIZE))


def _one_time_prekey(body: list[Any]) -> OneTimePrekey:
    key_id, private = _list(body, 2)
    return OneTimePrekey(_number(key_id), X25519Private(private))


def _identity(body: list[Any]) -> Identity:
    (seed,) = _list(body, 1)
    return Identity(Ed25519Private(seed))


def _state_to_list(state: State) -> list[Any]:
    if isinstance(state, Waiting):
        return ["waiting", bytes(state.own), bytes(state.root)]
    turn, sending = state.turn, state.sending
    common = [bytes(turn.own), turn.remote, bytes(turn.root), turn.previous, bytes(sending.key), sending.n]
    if isinstance(state, Opened):
        return ["opened", *common]
    receiving, backlog = state.receiving, state.backlog
    runs = [
        [dh, [part for (_, number), key in run for part in (number, bytes(key))]]
        for dh, run in groupby(backlog.skipped.items(), key=lambda item: item[0][0])
    ]
    return ["established", *common, bytes(receiving.key), receiving.n, runs, list(backlog.retired)]


def _state_from_list(value: Any) -> State:
    match value:
        case ["waiting", own, root]:
            return Waiting(X25519Private(own), SecretBytes(root))
        case ["opened", own, remote, root, previous, key, n]:
            return Opened(_turn(own, remote, root, previous), _chain(key, n))
        case ["established", own, remote, root, previous, key, n, receiving_key, receiving_n, skipped, retired]:
            return Established(
                _turn(own, remote, root, previous),
                _chain(key, n),
                _chain(receiving_key, receiving_n),
                Backlog(_skipped(skipped), tuple(_bytes(dh, _KEY_SIZE) for dh in _list(retired, at_most=MAX_RETIRED))),
            )
    raise InvalidValue("no state of a ratchet")


def _turn(own: Any, remote: Any, root: Any, previous: Any) -> Turn:
    private = X25519Private(own)
    return Turn(
        private, bytes(private.public), _bytes(remote, _KEY_SIZE), SecretBytes(root), _number(previous, MAX_NUMBER + 1)
    )


def _chain(key: Any, n: Any) -> Chain:
    return Chain(SecretBytes(key), _number(n, MAX_NUMBER + 1))


def _skipped(runs: Any) -> Mapping[tuple[bytes, int], SecretBytes]:
    skipped: dict[tuple[bytes, int], SecretBytes] = {}
    for run in _list(runs, at_most=MAX_KEPT):
        dh, parts = _list(run, 2)
        parts = _list(parts, at_most=2 * MAX_KEPT)
        for number, key in zip(parts[::2], parts[1::2], strict=True):
            skipped[_bytes(dh, _KEY_SIZE), _number(number, MAX_NUMBER)] = SecretBytes(key)
    if len(skipped) > MAX_KEPT:
        raise InvalidValue(f"more than {MAX_KEPT} skipped keys")
    return skipped


def _list(value: Any, size: int | None = None, *, at_most: int | None = None) -> list[Any]:
    if not isinstance(value, list) or size not in (None, len(value)) or (at_most is not None and len(value) > at_most):
        raise InvalidValue("an array of another size")
    return value


def _bytes(value: Any, size: int) -> bytes:
    if not isinstance(value, bytes) or len(value) != size:
        raise InvalidValue(f"not {size} bytes")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidValue("no text")
    return value


def _number(value: Any, highest: int = 2**63 - 1) -> int:
    if type(value) is not int or not 0 <= value <= highest:
        raise InvalidValue("no number in range")
    return value


# --- sealing --------------------------------------------------------------------------------------------------------

_MAX_OPS = 64
_MAX_MEMORY = 1 << 30
_CHECK_LABEL = "meshlib-sealing-v1"


class SealingKey:
    """A key derived from a passphrase, for as many records as a store holds.

    Argon2id makes the key once, from parameters that lie in :attr:`header`; XChaCha20-Poly1305 seals each record under
    a random nonce and a label. The label says what the record is and where it belongs (``"session did:mesh:..."``):
    somebody who can write to the disk but does not know the passphrase cannot put one record in another's place.
    He can still put an old version of a record back.
    """

    __slots__ = ("_key", "header")

    def __init__(self, key: SecretBytes, header: bytes) -> None:
        self._key = key
        self.header = header
        """Salt, costs and a check value: not secret; keep it beside the records and give it to :meth:`open`."""

    @classmethod
    def create(
        cls,
        passphrase: str,
        entropy: Entropy,
        *,
        operations: int = 3,
        memory: int = 64 << 20,
    ) -> "SealingKey":
        """A key for a new store. Draws a salt (16 bytes) and a nonce (24 bytes).

        At the costs that are the default it takes 64 MiB and about a quarter of a second.

        Args:
            operations: passes over the memory, 1 to 64.
            memory: bytes, 8 KiB to 1 GiB.
        """
        salt = entropy(SALT_SIZE)
        key = _derive(passphrase, salt, operations, memory)
        check = cls(key, b"").seal(b"", _CHECK_LABEL, entropy)
        packed = _pack("sealing", [salt, operations, memory, check])
        return cls(key, packed)

    @classmethod
    def open(cls, passphrase: str, header: bytes) -> "SealingKey":
        """The key of an existing store.

        Raises:
            StoreError: the passphrase is another one, or the header is damaged or asks for more than 1 GiB.
        """
        salt, operations, memory, check = _unpack("sealing", header, _sealing)
        try:
            key = cls(_derive(passphrase, salt, operations, memory), header)
        except InvalidValue as error:
            raise StoreError("a stored sealing is damaged") from error
        try:
            key.unseal(check, _CHECK_LABEL)
        except StoreError:
            raise StoreError("the passphrase does not open this store") from None
        return key

    def seal(self, data: bytes, label: str, entropy: Entropy) -> bytes:
        """``nonce(24) || ciphertext || tag(16)``. Draws the nonce."""
        nonce = entropy(LONG_NONCE_SIZE)
        return nonce + seal_record(self._key, nonce, data, label.encode())

    def unseal(self, sealed: bytes, label: str) -> bytes:
        """Undo :meth:`seal`.

        Raises:
            StoreError: another key, another label, or damaged.
        """
        if len(sealed) < LONG_NONCE_SIZE + TAG_SIZE:
            raise StoreError("a sealed record is damaged")
        try:
            return unseal_record(self._key, sealed[:LONG_NONCE_SIZE], sealed[LONG_NONCE_SIZE:], label.encode())
        except NotAuthentic:
            raise StoreError("a sealed record does not open: damaged, or sealed under another key or label") from None

    def __repr__(self) -> str:
        return "SealingKey(<secret>)"


def _sealing(body: list[Any]) -> tuple[bytes, int, int, bytes]:
    salt, operations, memory, check = _list(body, 4)
    return (
        _bytes(salt, SALT_SIZE),
        _number(operations, _MAX_OPS),
        _number(memory, _MAX_MEMORY),
        _bytes(check, LONG_NONCE_SIZE + TAG_SIZE),
    )


def _derive(passphrase: str, salt: bytes, operations: int, memory: int) -> SecretBytes:
    # One text, one key: keyboards and clipboards differ in how they compose accents.
    try:
        secret = unicodedata.normalize("NFC", passphrase).encode()
    except UnicodeEncodeError:
        raise InvalidValue("a passphrase is Unicode text") from None  # the original error carries the passphrase
    costs = {"operations": _number(operations, _MAX_OPS), "memory": _number(memory, _MAX_MEMORY)}
    return stretch(secret, salt=salt, **costs)
