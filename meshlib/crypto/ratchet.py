"""The Double Ratchet as pure functions over frozen states: encrypt and decrypt return the next state.

Owns chains, skipped keys and the decision whether a message is new. Leaves who talks to whom to
:mod:`meshlib.session`, and retries, acks and storage to the client.

Theory of operation. There are three states, each with exactly the keys that exist in it::

    respond() -> Waiting ---------------- decrypt turns ---> Established -+
    initiate() -> Opened --encrypt-->Opened                     ^    ^    | encrypt, decrypt
                       +------------------ decrypt turns -------+    +----+

``Waiting`` cannot send, ``Opened`` has heard nothing. A message under a ratchet key not seen before *turns* the
ratchet: a root step gives the receiving chain, a fresh key and another root step the new sending chain.

What a hostile sender can cost: refusals are ordered by price. Shape, low order, known keys and the limits are
checked with comparisons alone; then comes one agreement and at most ``max_skip`` + 1 chain steps; the second
agreement, the fresh key and the skipped keys are made only after the message has authenticated. No state is touched
on the way: an error leaves the caller with the value it had.

States hold keys, bytes and numbers, and never each other in a circle: the garbage collector need not look at them.

Source: Signal Double Ratchet rev. 1, sections 2 and 3; vectors/ratchet/ratchet_agt5.json
"""

import struct
from collections.abc import Mapping
from itertools import accumulate

from msgspec import Struct

from meshlib.crypto.keys import Entropy, SecretBytes, X25519Private, X25519Public
from meshlib.crypto.primitives import (
    NONCE_SIZE,
    TAG_SIZE,
    hkdf_sha256,
    hmac_sha256,
    hmac_sha256_twice,
    refuse_low_order,
    seal,
    unseal,
    x25519,
)
from meshlib.errors import (
    InvalidValue,
    MalformedFrame,
    NotAuthentic,
    Replayed,
    SessionNotReady,
    TooManySkipped,
)

MAX_SKIP = 100
"""Messages that may be missing in one chain before a message that is taken; the SDK's limit."""
MAX_KEPT = 2000
"""Skipped keys kept in all, about 400 kB at most; the oldest are dropped first. The SDK's limit."""
MAX_RETIRED = 32
"""Ended receiving chains whose ratchet key is remembered, 1 kB, so that a late copy is known for a repetition."""
MAX_NUMBER = 2**32 - 1
"""The header counts in 32 bits."""
HEADER_SIZE = 40
OVERHEAD = NONCE_SIZE + TAG_SIZE

_INFO = b"AgentMesh_Ratchet_v1"
_KEY_SIZE = 32
_pack_numbers = struct.Struct(">II").pack


class Header(Struct, frozen=True, gc=False):
    """What travels beside a ciphertext: ``dh`` (ratchet key, 32 bytes), ``pn`` (length of the sender's previous
    chain) and ``n`` (number in this one). Authenticated as part of the associated data."""

    dh: bytes
    pn: int
    n: int

    def encode(self) -> bytes:
        """``dh(32) || pn(uint32 BE) || n(uint32 BE)``.

        Raises:
            MalformedFrame: the header is of another shape.
        """
        if type(self.dh) is bytes and len(self.dh) == _KEY_SIZE:
            try:
                return self.dh + _pack_numbers(self.pn, self.n)
            except struct.error:
                pass
        raise MalformedFrame("a ratchet header is a key of 32 bytes and two integers of 32 bits")


SkippedKeys = Mapping[tuple[bytes, int], SecretBytes]
"""Message keys of messages not seen yet, by (ratchet key, number), in the order in which they were skipped."""


class Chain(Struct, frozen=True, gc=False):
    """A symmetric chain: ``key`` makes the key of message ``n`` and the chain after it."""

    key: SecretBytes
    n: int


class Turn(Struct, frozen=True, gc=False):
    """What the last DH turn settled; nothing in it changes until the next one."""

    own: X25519Private
    own_public: bytes
    remote: bytes
    root: SecretBytes
    previous: int
    """Length of the sending chain before this one, the ``pn`` of what is sent."""


class Backlog(Struct, frozen=True, gc=False):
    """What is remembered of messages out of order."""

    skipped: SkippedKeys
    retired: tuple[bytes, ...]
    """Ratchet keys of ended receiving chains, newest first."""


class Waiting(Struct, frozen=True, gc=False):
    """A responder that has heard nothing. It has no sending chain."""

    own: X25519Private
    root: SecretBytes


class Opened(Struct, frozen=True, gc=False):
    """An initiator that has heard nothing. ``turn.remote`` is the responder's signed prekey."""

    turn: Turn
    sending: Chain


class Established(Struct, frozen=True, gc=False):
    """Both directions are open."""

    turn: Turn
    sending: Chain
    receiving: Chain
    backlog: Backlog


State = Waiting | Opened | Established

NO_BACKLOG = Backlog({}, ())


def kdf_root(root: SecretBytes, agreement: bytes) -> tuple[SecretBytes, SecretBytes]:
    """One root step: the next root key and a new chain key."""
    output = hkdf_sha256(salt=bytes(root), ikm=agreement, info=_INFO, length=64)
    return SecretBytes(output[:32]), SecretBytes(output[32:])


def kdf_chain(key: SecretBytes) -> tuple[bytes, SecretBytes]:
    """One chain step: the message key, which goes straight into the cipher, and the next chain key."""
    message, following = hmac_sha256_twice(key.raw, b"\x01", b"\x02")
    return message, SecretBytes(following)


def _message_key(key: bytes) -> bytes:
    return hmac_sha256(key, b"\x01")


def _next_key(key: bytes) -> bytes:
    return hmac_sha256(key, b"\x02")


def initiate(secret: SecretBytes, remote: X25519Public, entropy: Entropy) -> Opened:
    """The initiator's first state. ``remote`` is the responder's signed prekey. Draws a ratchet key (32 bytes).

    Raises:
        WeakKey: ``remote`` is of low order.
    """
    own = X25519Private.generate(entropy)
    root, sending = kdf_root(secret, x25519(own, remote))
    return Opened(Turn(own, bytes(own.public), bytes(remote), root, 0), Chain(sending, 0))


def respond(secret: SecretBytes, own: X25519Private) -> Waiting:
    """The responder's first state. ``own`` is the signed prekey the initiator used."""
    return Waiting(own, secret)


def can_send(state: State) -> bool:
    """Whether :func:`encrypt` can work: the state has a sending chain, and the chain has numbers left."""
    return not isinstance(state, Waiting) and state.sending.n <= MAX_NUMBER


def knows_key(state: State, header: Header) -> bool:
    """Whether ``header`` is under a ratchet key this state has received under. Costs comparisons only."""
    if not isinstance(state, Established):
        return False
    return (
        header.dh == state.turn.remote
        or header.dh in state.backlog.retired
        or (header.dh, header.n) in state.backlog.skipped
    )


def encrypt(
    state: State, plaintext: bytes, associated_data: bytes, entropy: Entropy
) -> tuple[Opened | Established, Header, bytes]:
    """Seal ``plaintext``. Draws the nonce (12 bytes).

    Args:
        associated_data: what both sides know of the session; the header is appended to it here.
    Returns:
        The next state, the header, and ``nonce(12) || ciphertext || tag(16)``.
    Raises:
        SessionNotReady: a responder that has received nothing, or a chain of 2**32 messages.
    """
    if isinstance(state, Waiting):
        raise SessionNotReady("the responder of a session sends after it has received, not before")
    turn, sending = state.turn, state.sending
    if sending.n > MAX_NUMBER:
        raise SessionNotReady("the sending chain is used up: open a new session")
    header = Header(turn.own_public, turn.previous, sending.n)
    nonce = entropy(NONCE_SIZE)
    if len(nonce) != NONCE_SIZE:
        raise InvalidValue(f"the entropy source gave {len(nonce)} bytes for a nonce of {NONCE_SIZE}")
    key, following = kdf_chain(sending.key)
    authenticated = associated_data + turn.own_public + _pack_numbers(turn.previous, sending.n)
    ciphertext = nonce + seal(key, nonce, plaintext, authenticated)
    advanced = Chain(following, sending.n + 1)
    if isinstance(state, Established):
        return Established(turn, advanced, state.receiving, state.backlog), header, ciphertext
    return Opened(turn, advanced), header, ciphertext


def decrypt(
    state: State,
    header: Header,
    ciphertext: bytes,
    associated_data: bytes,
    entropy: Entropy,
    *,
    max_skip: int = MAX_SKIP,
    max_kept: int = MAX_KEPT,
) -> tuple[Established, bytes]:
    """Open a ciphertext. Draws a ratchet key (32 bytes) when the ratchet turns, and only after authentication.

    Returns:
        The next state and the plaintext.
    Raises:
        MalformedFrame: a header or ciphertext of an impossible shape.
        WeakKey: the ratchet key is of low order.
        Replayed: the number, or its whole chain, lies behind us and no key is kept for it.
        TooManySkipped: more than ``max_skip`` messages are missing in the old or in the new chain.
        NotAuthentic: anything else that is not what the peer sent on this session.
    """
    authenticated = associated_data + header.encode()
    if len(ciphertext) < OVERHEAD:
        raise MalformedFrame(f"a ciphertext has at least {OVERHEAD} bytes, not {len(ciphertext)}")
    if isinstance(state, Established):
        turn, receiving, backlog = state.turn, state.receiving, state.backlog
        if header.n == receiving.n and header.dh == turn.remote:
            key, following = kdf_chain(receiving.key)
            plaintext = unseal(key, ciphertext[:NONCE_SIZE], ciphertext[NONCE_SIZE:], authenticated)
            return Established(turn, state.sending, Chain(following, receiving.n + 1), backlog), plaintext
        kept = backlog.skipped.get((header.dh, header.n))
        if kept is not None:
            plaintext = _open(bytes(kept), ciphertext, authenticated)
            skipped = {place: key for place, key in backlog.skipped.items() if key is not kept}
            return Established(turn, state.sending, receiving, Backlog(skipped, backlog.retired)), plaintext
        if header.dh == turn.remote:
            return _skip(state, header, ciphertext, authenticated, max_skip, max_kept)
    return _turn(state, header, ciphertext, authenticated, entropy, max_skip, max_kept)


def _skip(
    state: Established, header: Header, ciphertext: bytes, authenticated: bytes, max_skip: int, max_kept: int
) -> tuple[Established, bytes]:
    """Take a message of the receiving chain before which others are missing."""
    receiving = state.receiving
    gap = header.n - receiving.n
    if gap < 0:
        raise Replayed("a message of this number was read before, or its key is not kept any more")
    if gap > max_skip:
        raise TooManySkipped(gap, max_skip)
    chain_keys = _walk(receiving.key, gap)
    key, following = hmac_sha256_twice(chain_keys[-1], b"\x01", b"\x02")
    plaintext = _open(key, ciphertext, authenticated)
    skipped = _keep(state.backlog.skipped, [(header.dh, receiving.n, chain_keys[:-1])], max_kept)
    advanced = Chain(SecretBytes(following), header.n + 1)
    return Established(state.turn, state.sending, advanced, Backlog(skipped, state.backlog.retired)), plaintext


def _turn(
    state: State,
    header: Header,
    ciphertext: bytes,
    authenticated: bytes,
    entropy: Entropy,
    max_skip: int,
    max_kept: int,
) -> tuple[Established, bytes]:
    """Take the first message of a new receiving chain."""
    refuse_low_order(header.dh)
    unread = _unread(state, header, max_skip)
    if header.n > max_skip:
        raise TooManySkipped(header.n, max_skip)
    own, root = (state.own, state.root) if isinstance(state, Waiting) else (state.turn.own, state.turn.root)
    remote = X25519Public(header.dh)
    root, receiving = kdf_root(root, x25519(own, remote))
    chain_keys = _walk(receiving, header.n)
    key, following = hmac_sha256_twice(chain_keys[-1], b"\x01", b"\x02")
    plaintext = _open(key, ciphertext, authenticated)

    # Authentic from here on: only now is it worth, and safe, to spend randomness and memory.
    fresh = X25519Private.generate(entropy)
    root, sending = kdf_root(root, x25519(fresh, remote))
    runs = [(header.dh, 0, chain_keys[:-1])]
    backlog, previous = NO_BACKLOG, 0 if isinstance(state, Waiting) else state.sending.n
    if isinstance(state, Established):
        runs.insert(0, (state.turn.remote, state.receiving.n, _walk(state.receiving.key, unread)[:-1]))
        backlog = Backlog(state.backlog.skipped, (state.turn.remote, *state.backlog.retired)[:MAX_RETIRED])
    return (
        Established(
            Turn(fresh, bytes(fresh.public), header.dh, root, previous),
            Chain(sending, 0),
            Chain(SecretBytes(following), header.n + 1),
            Backlog(_keep(backlog.skipped, runs, max_kept), backlog.retired),
        ),
        plaintext,
    )


def _unread(state: State, header: Header, max_skip: int) -> int:
    """How many messages of the ended receiving chain have not been read, if ``header`` can start a new one.

    A ratchet key is answered before the next one is made, so the chain before the new one is the one we read last,
    and a genuine ``pn`` is never below what was read of it. A first chain has none before it.
    """
    if not isinstance(state, Established):
        own = bytes(state.own.public) if isinstance(state, Waiting) else state.turn.own_public
        if header.pn != 0 or header.dh == own or (isinstance(state, Opened) and header.dh == state.turn.remote):
            raise NotAuthentic("no first message of a peer looks like this")
        return 0
    if header.dh in state.backlog.retired:
        raise Replayed("a message of an ended chain was read before, or its key is not kept any more")
    unread = header.pn - state.receiving.n
    if unread > max_skip:
        raise TooManySkipped(unread, max_skip)
    if unread < 0 or header.dh == state.turn.own_public:
        raise NotAuthentic("no next chain of the peer starts like this")
    return unread


def _walk(key: SecretBytes, steps: int) -> list[bytes]:
    """Chain keys from ``key`` to the one ``steps`` further, both included."""
    return list(accumulate(range(steps), lambda reached, _: _next_key(reached), initial=bytes(key)))


def _keep(skipped: SkippedKeys, runs: list[tuple[bytes, int, list[bytes]]], limit: int) -> SkippedKeys:
    """``skipped`` and the message keys of ``runs`` (ratchet key, first number, chain keys), the newest ``limit``."""
    added = {
        (dh, first + index): SecretBytes(_message_key(key))
        for dh, first, keys in runs
        for index, key in enumerate(keys)
    }
    if not added:
        return skipped
    merged = {**skipped, **added}
    for place in list(merged)[: max(0, len(merged) - limit)]:
        del merged[place]
    return merged


def _open(key: bytes, ciphertext: bytes, authenticated: bytes) -> bytes:
    return unseal(key, ciphertext[:NONCE_SIZE], ciphertext[NONCE_SIZE:], authenticated)
