"""The Double Ratchet: what is new is read once, everything else is refused and changes nothing."""

import hmac
import os

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec.structs import replace

from meshlib.crypto import ratchet
from meshlib.crypto.keys import SecretBytes, X25519Private
from meshlib.crypto.ratchet import Established, Header, Opened, Waiting
from meshlib.errors import (
    InvalidValue,
    MalformedFrame,
    NotAuthentic,
    Replayed,
    SessionNotReady,
    TooManySkipped,
    WeakKey,
)

AD = b"did:mesh:a|did:mesh:b" + bytes(64)
LOW_ORDER = (
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
    (1 << 255).to_bytes(32, "little"),
)


def nothing(size):
    raise AssertionError("nothing may be drawn")


class CountingEntropy:
    def __init__(self):
        self.sizes = []

    def __call__(self, size):
        self.sizes.append(size)
        return os.urandom(size)


class Peer:
    """A mutable hull around states, so that tests read like a conversation."""

    def __init__(self, state, max_skip=ratchet.MAX_SKIP, max_kept=ratchet.MAX_KEPT):
        self.state = state
        self.limits = {"max_skip": max_skip, "max_kept": max_kept}

    def send(self, text=b"text"):
        self.state, header, ciphertext = ratchet.encrypt(self.state, text, AD, os.urandom)
        return header, ciphertext

    def read(self, message, ad=AD, entropy=os.urandom):
        self.state, plaintext = ratchet.decrypt(self.state, *message, ad, entropy, **self.limits)
        return plaintext

    def refuses(self, message, error, ad=AD):
        """Refused with exactly this error; the state is the same object afterwards and nothing was drawn."""
        before = self.state
        with pytest.raises(error) as caught:
            ratchet.decrypt(self.state, *message, ad, nothing, **self.limits)
        assert type(caught.value) is error
        assert self.state is before
        return caught.value


def pair(**limits):
    secret, signed = SecretBytes(os.urandom(32)), X25519Private(os.urandom(32))
    alice = Peer(ratchet.initiate(secret, signed.public, os.urandom), **limits)
    return alice, Peer(ratchet.respond(secret, signed), **limits)


def talking(**limits):
    alice, bob = pair(**limits)
    bob.read(alice.send())
    alice.read(bob.send())
    return alice, bob


def flipped(raw, bit):
    return raw[: bit // 8] + bytes((raw[bit // 8] ^ 1 << bit % 8,)) + raw[bit // 8 + 1 :]


# --- states ---------------------------------------------------------------------------------------------------------


def test_states_follow_the_theory_of_operation():
    alice, bob = pair()
    assert isinstance(alice.state, Opened)
    assert isinstance(bob.state, Waiting)
    first = alice.send()
    assert isinstance(alice.state, Opened)
    bob.read(first)
    assert isinstance(bob.state, Established)
    alice.read(bob.send())
    assert isinstance(alice.state, Established)


def test_responder_cannot_send_before_it_has_received():
    alice, bob = pair()
    assert not ratchet.can_send(bob.state)
    with pytest.raises(SessionNotReady):
        ratchet.encrypt(bob.state, b"early", AD, nothing)
    bob.read(alice.send())
    assert ratchet.can_send(bob.state)


def test_used_up_chain_cannot_send():
    alice, _ = pair()
    last = replace(alice.state, sending=replace(alice.state.sending, n=ratchet.MAX_NUMBER))
    assert ratchet.can_send(last)
    state, header, _ = ratchet.encrypt(last, b"last", AD, os.urandom)
    assert header.n == 2**32 - 1
    assert not ratchet.can_send(state)
    with pytest.raises(SessionNotReady):
        ratchet.encrypt(state, b"one more", AD, nothing)


def test_encrypting_twice_from_one_state_leaves_it_as_it_was():
    alice, _ = pair()
    state = alice.state
    one, two = (ratchet.encrypt(state, b"x", AD, lambda size: bytes(size)) for _ in range(2))
    assert one == two
    assert state.sending.n == 0


@pytest.mark.parametrize("size", [0, 11, 13, 24])
def test_nonce_of_another_size_is_not_used(size):
    alice, _ = pair()
    with pytest.raises(InvalidValue):
        ratchet.encrypt(alice.state, b"x", AD, lambda _: bytes(size))


# --- order ----------------------------------------------------------------------------------------------------------


def test_messages_are_read_in_any_order_over_several_turns():
    alice, bob = talking()
    sent = []
    for turn in range(4):
        sent += [(bob, alice.send(b"a%d.%d" % (turn, n)), b"a%d.%d" % (turn, n)) for n in range(5)]
        bob.read(alice.send())
        sent += [(alice, bob.send(b"b%d.%d" % (turn, n)), b"b%d.%d" % (turn, n)) for n in range(3)]
        alice.read(bob.send())
    for reader, message, text in reversed(sent):
        assert reader.read(message) == text
    for peer in (alice, bob):
        assert not peer.state.backlog.skipped


@pytest.mark.parametrize("size", [0, 1, 255, 65_536])
def test_text_of_any_size_is_read(size):
    alice, bob = pair()
    message = alice.send(bytes(size))
    assert len(message[1]) == size + ratchet.OVERHEAD
    assert bob.read(message) == bytes(size)


def test_first_message_may_be_lost():
    alice, bob = pair()
    alice.send()
    assert bob.read(alice.send(b"second")) == b"second"


def test_a_ratchet_key_is_drawn_once_per_turn_and_not_otherwise():
    alice, bob = pair()
    first, second, third = alice.send(), alice.send(), alice.send()
    entropy = CountingEntropy()
    bob.read(second, entropy=entropy)
    assert entropy.sizes == [32]
    bob.read(third, entropy=nothing)
    bob.read(first, entropy=nothing)
    alice.read(bob.send(), entropy=entropy)
    assert entropy.sizes == [32, 32]


def test_every_turn_changes_the_ratchet_key_and_tells_the_length_before():
    alice, bob = talking()
    keys = set()
    for count in range(1, 5):
        for _ in range(count):
            header, ciphertext = alice.send()
            bob.read((header, ciphertext))
        keys.add(header.dh)
        assert header.n == count - 1
        assert header.pn == (count - 1 if count > 1 else 1)
        alice.read(bob.send())
    assert len(keys) == 4


# --- repetitions ----------------------------------------------------------------------------------------------------


def test_last_message_again_is_replayed_and_the_next_is_read():
    alice, bob = talking()
    message = alice.send()
    bob.read(message)
    bob.refuses(message, Replayed)
    assert bob.read(alice.send(b"next")) == b"next"


def test_message_read_from_a_skipped_key_again_is_replayed():
    alice, bob = talking()
    early, late = alice.send(), alice.send()
    bob.read(late)
    bob.read(early)
    bob.refuses(early, Replayed)
    bob.refuses(late, Replayed)


def test_first_message_of_the_session_again_is_replayed():
    alice, bob = pair()
    message = alice.send()
    bob.read(message)
    bob.refuses(message, Replayed)


def test_message_of_an_ended_chain_again_is_replayed():
    alice, bob = talking()
    old = [alice.send() for _ in range(3)]
    for message in old:
        bob.read(message)
    for _ in range(ratchet.MAX_RETIRED):
        alice.read(bob.send())
        bob.read(alice.send())
    for message in old:
        bob.refuses(message, Replayed)


def test_memory_of_ended_chains_is_bounded():
    alice, bob = talking()
    oldest = alice.send()
    bob.read(oldest)
    for _ in range(ratchet.MAX_RETIRED + 1):
        alice.read(bob.send())
        bob.read(alice.send())
    assert len(bob.state.backlog.retired) == ratchet.MAX_RETIRED
    bob.refuses(oldest, NotAuthentic)  # forgotten, and still of no use to whoever sends it again
    assert bob.read(alice.send(b"next")) == b"next"


def test_message_of_an_ended_chain_that_was_missing_is_still_read():
    alice, bob = talking()
    late = alice.send(b"late")
    bob.read(alice.send())
    alice.read(bob.send())
    bob.read(alice.send())
    assert bob.read(late) == b"late"
    bob.refuses(late, Replayed)


# --- forgeries ------------------------------------------------------------------------------------------------------


def test_any_changed_bit_of_a_ciphertext_is_noticed_and_the_genuine_one_is_read():
    alice, bob = talking()
    header, ciphertext = alice.send(b"text")
    for bit in range(8 * len(ciphertext)):
        bob.refuses((header, flipped(ciphertext, bit)), NotAuthentic)
    assert bob.read((header, ciphertext)) == b"text"


@pytest.mark.parametrize("first_of_chain", [True, False])
def test_any_changed_bit_of_a_ratchet_key_is_noticed_and_the_genuine_one_is_read(first_of_chain):
    alice, bob = talking()
    if not first_of_chain:
        bob.read(alice.send())
    header, ciphertext = alice.send(b"text")
    for bit in range(256):
        bob.refuses((replace(header, dh=flipped(header.dh, bit)), ciphertext), NotAuthentic)
    assert bob.read((header, ciphertext)) == b"text"


def test_changed_numbers_are_noticed_and_the_genuine_message_is_read():
    alice, bob = talking()
    header, ciphertext = alice.send(b"text")
    for n in (1, 2, 100):
        bob.refuses((replace(header, n=n), ciphertext), NotAuthentic)
    for pn in (0, 2, 3, 101):
        bob.refuses((replace(header, pn=pn), ciphertext), NotAuthentic)
    assert bob.read((header, ciphertext)) == b"text"


def test_other_associated_data_is_noticed():
    alice, bob = talking()
    message = alice.send()
    for ad in (b"", AD[1:], AD + b"\x00", flipped(AD, 0), flipped(AD, 8 * len(AD) - 1)):
        bob.refuses(message, NotAuthentic, ad=ad)
    assert bob.read(message) == b"text"


@pytest.mark.parametrize("dh", LOW_ORDER)
def test_low_order_ratchet_key_is_weak_in_every_state(dh):
    alice, bob = pair()
    header, ciphertext = alice.send()
    forged = (Header(dh, 0, 0), ciphertext)
    bob.refuses(forged, WeakKey)
    alice.refuses(forged, WeakKey)
    bob.read((header, ciphertext))
    bob.refuses(forged, WeakKey)
    alice.read(bob.send())
    alice.refuses(forged, WeakKey)


def test_own_message_coming_back_is_not_authentic():
    alice, bob = pair()
    first = alice.send()
    alice.refuses(first, NotAuthentic)
    bob.read(first)
    reply = bob.send()
    bob.refuses(reply, NotAuthentic)
    alice.read(reply)
    again = alice.send()
    alice.refuses(again, NotAuthentic)
    alice.refuses(first, NotAuthentic)
    assert bob.read(again) == b"text"


def test_message_under_the_signed_prekey_itself_is_not_authentic():
    alice, bob = pair()
    _, ciphertext = alice.send()
    signed = bytes(bob.state.own.public)
    alice.refuses((Header(signed, 0, 0), ciphertext), NotAuthentic)
    bob.refuses((Header(signed, 0, 0), ciphertext), NotAuthentic)


def test_message_of_another_session_is_not_authentic():
    alice, bob = talking()
    other, _ = talking()
    bob.refuses(other.send(), NotAuthentic)
    assert bob.read(alice.send()) == b"text"


def test_forged_turns_cost_no_randomness_and_no_state():
    alice, bob = talking()
    _, ciphertext = alice.send()
    for _ in range(20):
        stranger = bytes(X25519Private(os.urandom(32)).public)
        bob.refuses((Header(stranger, 1, 0), ciphertext), NotAuthentic)
    assert bob.read(alice.send(b"genuine")) == b"genuine"


@pytest.mark.parametrize("size", [0, 11, 12, 27])
def test_ciphertext_without_room_for_nonce_and_tag_is_malformed(size):
    alice, bob = talking()
    header, ciphertext = alice.send()
    bob.refuses((header, ciphertext[:size]), MalformedFrame)
    assert bob.read((header, ciphertext)) == b"text"


@pytest.mark.parametrize(
    "change",
    [
        {"dh": b""},
        {"dh": bytes(31)},
        {"dh": bytes(33)},
        {"dh": "0" * 32},
        {"dh": None},
        {"dh": bytearray(32)},
        {"n": -1},
        {"n": 2**32},
        {"n": 1.0},
        {"n": "1"},
        {"n": None},
        {"pn": -1},
        {"pn": 2**32},
        {"pn": 10**30},
        {"pn": float("nan")},
        {"pn": None},
    ],
)
def test_header_of_an_impossible_shape_is_malformed(change):
    alice, bob = talking()
    header, ciphertext = alice.send()
    bob.refuses((replace(header, **change), ciphertext), MalformedFrame)
    assert bob.read((header, ciphertext)) == b"text"


def test_header_travels_as_key_and_two_big_endian_numbers():
    assert Header(b"\x09" * 32, 1, 0xFFFFFFFF).encode() == b"\x09" * 32 + b"\x00\x00\x00\x01\xff\xff\xff\xff"
    assert len(Header(bytes(32), 0, 0).encode()) == ratchet.HEADER_SIZE


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1, 3, 100])
def test_gap_up_to_the_limit_is_bridged_and_the_next_is_not(limit):
    alice, bob = pair(max_skip=limit)
    for _ in range(2):  # once at the head of a chain, once inside it
        for _ in range(limit):
            alice.send()
        assert bob.read(alice.send(b"bridged")) == b"bridged"
    for _ in range(limit + 1):
        alice.send()
    error = bob.refuses(alice.send(), TooManySkipped)
    assert (error.gap, error.limit) == (limit + 1, limit)


def test_gap_at_the_end_of_the_old_chain_counts_for_itself():
    alice, bob = talking(max_skip=3)
    bob.read(alice.send())
    reply = bob.send()
    for _ in range(3):
        alice.send()
    alice.read(reply)
    for _ in range(3):
        alice.send()
    assert bob.read(alice.send(b"both gaps")) == b"both gaps"
    assert len(bob.state.backlog.skipped) == 6


@pytest.mark.parametrize("numbers", [(1, 2**32 - 1), (2**32 - 1, 0), (2**32 - 1, 2**32 - 1), (102, 0), (1, 101)])
def test_gap_beyond_the_limit_is_refused_before_any_agreement(numbers, monkeypatch):
    alice, bob = talking()
    _, ciphertext = alice.send()
    monkeypatch.setattr(ratchet, "x25519", nothing)
    bob.refuses((Header(bytes(X25519Private(os.urandom(32)).public), *numbers), ciphertext), TooManySkipped)


def test_what_no_peer_sends_is_refused_before_any_agreement(monkeypatch):
    alice, bob = pair()
    first = alice.send()
    fresh = bytes(X25519Private(os.urandom(32)).public)
    waiting, opened = bob.state, alice.state
    bob.read(first)
    alice.read(bob.send())
    established = bob.state
    second = alice.send()
    bob.read(second)
    monkeypatch.setattr(ratchet, "x25519", nothing)
    for state, header, error in (
        (waiting, Header(fresh, 1, 0), NotAuthentic),  # a first chain has none before it
        (waiting, Header(bytes(waiting.own.public), 0, 0), NotAuthentic),
        (opened, Header(fresh, 1, 0), NotAuthentic),
        (opened, Header(opened.turn.remote, 0, 0), NotAuthentic),
        (opened, Header(opened.turn.own_public, 0, 0), NotAuthentic),
        (established, Header(fresh, 0, 0), NotAuthentic),  # one message of the chain before was read
        (established, Header(established.turn.own_public, 1, 0), NotAuthentic),
        (bob.state, Header(first[0].dh, 0, 5), Replayed),
        (established, Header(bytes(32), 1, 0), WeakKey),
    ):
        Peer(state).refuses((header, first[1]), error)


def test_huge_gap_in_the_chain_at_hand_is_refused_at_once():
    alice, bob = talking()
    bob.read(alice.send())
    header, ciphertext = alice.send()
    error = bob.refuses((replace(header, n=2**32 - 1), ciphertext), TooManySkipped)
    assert error.gap == 2**32 - 2


def test_no_more_than_the_bound_is_kept_and_the_oldest_go_first():
    alice, bob = talking(max_skip=5, max_kept=12)
    rounds = []
    for _ in range(4):
        rounds.append([alice.send(b"%d" % n) for n in range(5)])
        bob.read(alice.send())
        alice.read(bob.send())
    assert len(bob.state.backlog.skipped) == 12
    flat = [message for messages in rounds for message in messages]
    for message in flat[:8]:
        bob.refuses(message, Replayed)  # cannot be told from one that was read: its key is gone
    for message in flat[8:]:
        assert bob.read(message)
    assert not bob.state.backlog.skipped


def test_default_bounds_are_those_of_the_sdk():
    assert (ratchet.MAX_SKIP, ratchet.MAX_KEPT, ratchet.MAX_RETIRED) == (100, 2000, 32)


def test_forged_copy_of_a_skipped_message_leaves_its_key():
    alice, bob = talking()
    skipped = alice.send(b"skipped")
    bob.read(alice.send())
    bob.refuses((skipped[0], flipped(skipped[1], 100)), NotAuthentic)
    assert bob.read(skipped) == b"skipped"


def test_state_that_was_left_behind_is_not_changed_by_what_follows():
    alice, bob = talking()
    first, second = alice.send(b"first"), alice.send(b"second")
    before = bob.state
    bob.read(second)
    middle = bob.state
    bob.read(first)
    assert list(before.backlog.skipped) == []
    assert list(middle.backlog.skipped) == [(first[0].dh, first[0].n)]
    assert ratchet.decrypt(before, *first, AD, os.urandom)[1] == b"first"
    assert ratchet.decrypt(middle, *first, AD, nothing)[1] == b"first"


# --- who knows a key ------------------------------------------------------------------------------------------------


def test_keys_of_known_chains_are_recognised():
    alice, bob = pair()
    first = alice.send()
    assert not ratchet.knows_key(bob.state, first[0])
    assert not ratchet.knows_key(alice.state, Header(alice.state.turn.remote, 0, 0))
    bob.read(first)
    assert ratchet.knows_key(bob.state, first[0])
    alice.read(bob.send())
    second = alice.send()
    assert not ratchet.knows_key(bob.state, second[0])
    bob.read(second)
    assert ratchet.knows_key(bob.state, second[0])
    assert ratchet.knows_key(bob.state, first[0])
    assert not ratchet.knows_key(bob.state, Header(bytes(32), 0, 0))


# --- secrecy --------------------------------------------------------------------------------------------------------


def test_derivations_are_these_bytes():
    """Made with another library from the text of the specification."""
    root, agreement = bytes(range(32)), bytes(range(32, 64))
    library = HKDF(hashes.SHA256(), 64, root, b"AgentMesh_Ratchet_v1").derive(agreement)
    assert b"".join(map(bytes, ratchet.kdf_root(SecretBytes(root), agreement))) == library
    message, following = ratchet.kdf_chain(SecretBytes(root))
    assert message == hmac.digest(root, b"\x01", "sha256")
    assert bytes(following) == hmac.digest(root, b"\x02", "sha256")


def test_skipped_messages_have_the_keys_they_would_have_had():
    alice, bob = talking()
    chain = alice.state.sending.key
    for _ in range(3):
        alice.send()
    bob.read(alice.send())
    expected = []
    for _ in range(3):
        key, chain = ratchet.kdf_chain(chain)
        expected.append(key)
    assert [bytes(key) for key in bob.state.backlog.skipped.values()] == expected


def test_message_keys_do_not_repeat():
    key = SecretBytes(os.urandom(32))
    seen = set()
    for _ in range(300):
        message, key = ratchet.kdf_chain(key)
        seen |= {message, bytes(key)}
    assert len(seen) == 600


def test_key_of_a_read_message_is_gone():
    alice, bob = talking()
    chain = alice.state.sending.key
    key, following = ratchet.kdf_chain(chain)
    bob.read(alice.send())
    held = {bytes(bob.state.receiving.key), *map(bytes, bob.state.backlog.skipped.values())}
    assert bytes(following) in held
    assert bytes(chain) not in held
    assert key not in held
