"""State at rest: it comes back as it was, old records still load, and damaged ones are refused."""

import os
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib import snapshot
from meshlib.crypto.keys import Ed25519Private
from meshlib.crypto.prekeys import make_bundle, make_one_time_prekeys, make_signed_prekey
from meshlib.crypto.ratchet import MAX_KEPT, Header
from meshlib.crypto.x3dh import Dialect
from meshlib.errors import InvalidValue, StoreError
from meshlib.identity import Identity
from meshlib.session import Session
from meshlib.snapshot import SealingKey

DATA = Path(__file__).parent / "data"
ALICE, BOB = (Identity.generate(os.urandom) for _ in range(2))
SIGNED = make_signed_prekey(BOB, 1, os.urandom)
ONE_TIME = make_one_time_prekeys(2, 1, os.urandom)[0]
CHEAP = {"operations": 1, "memory": 8192}


def pair():
    bundle = make_bundle(BOB, SIGNED, ONE_TIME)
    alice, opening = Session.initiate(ALICE, ALICE.did, BOB.did, bundle, Dialect.AGT4, os.urandom)
    return alice, Session.respond(BOB, BOB.did, ALICE.did, opening, SIGNED, ONE_TIME, Dialect.AGT4)


def busy(rounds=3, lost=3):
    """Both ends of a session with gaps, and the messages that are still to come."""
    alice, bob = pair()
    late = []
    for _ in range(rounds):
        for _ in range(lost):
            alice, *message = alice.encrypt(b"late", os.urandom)
            late.append(message)
        alice, *message = alice.encrypt(b"x", os.urandom)
        bob, _ = bob.decrypt(*message, os.urandom)
        bob, *message = bob.encrypt(b"y", os.urandom)
        alice, _ = alice.decrypt(*message, os.urandom)
    return alice, bob, late


def sessions():
    waiting_side = pair()
    return [*waiting_side, *busy()[:2]]


@pytest.mark.parametrize("session", sessions(), ids=lambda session: type(session.state).__name__)
def test_session_comes_back_as_it_was(session):
    back = snapshot.unpack_session(snapshot.pack_session(session))
    assert back == session
    assert back.associated_data == session.associated_data
    assert back.terms == session.terms


def test_conversation_goes_on_from_a_snapshot():
    alice, bob, late = busy()
    alice, bob = (snapshot.unpack_session(snapshot.pack_session(session)) for session in (alice, bob))
    for message in late:
        bob, text = bob.decrypt(*message, os.urandom)
        assert text == b"late"
    alice, *message = alice.encrypt(b"after", os.urandom)
    bob, text = bob.decrypt(*message, os.urandom)
    assert text == b"after"
    bob, *message = bob.encrypt(b"and back", os.urandom)
    assert alice.decrypt(*message, os.urandom)[1] == b"and back"


def test_skipped_keys_come_back_in_order():
    _, bob, _ = busy(rounds=5)
    back = snapshot.unpack_session(snapshot.pack_session(bob))
    assert list(back.state.backlog.skipped.items()) == list(bob.state.backlog.skipped.items())
    assert back.state.backlog.retired == bob.state.backlog.retired
    assert len(back.state.backlog.retired) == 4


def test_fullest_session_fits():
    _, bob, _ = busy(rounds=21, lost=100)
    assert len(bob.state.backlog.skipped) == MAX_KEPT
    packed = snapshot.pack_session(bob)
    assert len(packed) < 100_000
    assert snapshot.unpack_session(packed) == bob


def test_usual_session_is_small():
    alice, bob = pair()
    alice, *message = alice.encrypt(b"x", os.urandom)
    bob, _ = bob.decrypt(*message, os.urandom)
    assert len(snapshot.pack_session(bob)) < 500


def test_prekeys_and_identity_come_back():
    assert snapshot.unpack_signed_prekey(snapshot.pack_signed_prekey(SIGNED)) == SIGNED
    assert snapshot.unpack_one_time_prekey(snapshot.pack_one_time_prekey(ONE_TIME)) == ONE_TIME
    assert snapshot.unpack_identity(snapshot.pack_identity(ALICE)) == ALICE


def test_old_snapshots_still_load():
    """Written by version 1; what a later version writes may differ, what it reads may not."""
    alice = snapshot.unpack_session((DATA / "session-initiator-v1.bin").read_bytes())
    bob = snapshot.unpack_session((DATA / "session-responder-v1.bin").read_bytes())
    assert alice.id == bob.id
    assert (alice.role, bob.role, alice.dialect) == ("initiator", "responder", Dialect.AGT5)
    assert len(bob.state.backlog.skipped) == 4
    late = msgpack.unpackb((DATA / "messages-v1.bin").read_bytes())
    for dh, pn, n, ciphertext, text in late:
        bob, plaintext = bob.decrypt(Header(dh, pn, n), ciphertext, os.urandom)
        assert plaintext == text
    assert not bob.state.backlog.skipped
    alice, *message = alice.encrypt(b"on we go", os.urandom)
    assert bob.decrypt(*message, os.urandom)[1] == b"on we go"
    identity = snapshot.unpack_identity((DATA / "identity-v1.bin").read_bytes())
    assert alice.initiator == identity.did
    signed = snapshot.unpack_signed_prekey((DATA / "signed-prekey-v1.bin").read_bytes())
    assert signed.key_id == 4
    assert snapshot.unpack_one_time_prekey((DATA / "one-time-prekey-v1.bin").read_bytes()).key_id == 11


# --- damage ---------------------------------------------------------------------------------------------------------

READERS = (
    snapshot.unpack_session,
    snapshot.unpack_signed_prekey,
    snapshot.unpack_one_time_prekey,
    snapshot.unpack_identity,
)
RECORDS = (
    *(snapshot.pack_session(session) for session in sessions()),
    snapshot.pack_signed_prekey(SIGNED),
    snapshot.pack_one_time_prekey(ONE_TIME),
    snapshot.pack_identity(ALICE),
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=70),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=25,
)


@given(st.binary(max_size=300))
def test_junk_is_refused(junk):
    for read in READERS:
        with pytest.raises(StoreError):
            read(junk)


@given(values, st.sampled_from(["session", "signed-prekey", "one-time-prekey", "identity"]))
def test_well_formed_junk_is_refused_or_small(value, kind):
    for read in READERS:
        for record in (value, [kind, 1, value], [kind, 1]):
            try:
                read(msgpack.packb(record))
            except StoreError:
                continue


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: msgpack.unpackb(record)[0])
def test_truncated_or_extended_record_is_refused(record):
    kind = msgpack.unpackb(record)[0]
    read = dict(zip(["session", "signed-prekey", "one-time-prekey", "identity"], READERS, strict=True))[kind]
    for size in range(len(record)):
        with pytest.raises(StoreError):
            read(record[:size])
    with pytest.raises(StoreError):
        read(record + b"\x00")


def places(value, path=()):
    """Every place in a nested list."""
    yield path
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


def put(value, path, new):
    if not path:
        return new
    return [put(inner, path[1:], new) if index == path[0] else inner for index, inner in enumerate(value)]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: msgpack.unpackb(record)[0])
@pytest.mark.parametrize(
    "new", [None, -1, 2**40, 2**64 - 1, 1.5, "", "waiting", b"", bytes(31), bytes(33), [], {}, True]
)
def test_no_value_of_another_shape_is_taken(record, new):
    """A changed value is refused, or, where it is of the right shape, makes another complete value."""
    body = msgpack.unpackb(record)
    for path in places(body):
        changed = put(body, path, new)
        for read in READERS:
            try:
                back = read(msgpack.packb(changed))
            except StoreError:
                continue
            if isinstance(back, Session):
                assert snapshot.unpack_session(snapshot.pack_session(back)) == back


@pytest.mark.parametrize("version", [0, 2, -1, 99])
def test_record_of_another_version_says_so(version):
    body = msgpack.unpackb(snapshot.pack_identity(ALICE))
    with pytest.raises(StoreError, match=f"version {version}"):
        snapshot.unpack_identity(msgpack.packb([body[0], version, body[2]]))


def test_record_of_another_kind_is_refused():
    with pytest.raises(StoreError, match="not a session"):
        snapshot.unpack_session(snapshot.pack_identity(ALICE))


def test_too_many_skipped_keys_are_refused():
    _, bob, _ = busy()
    kind, version, body = msgpack.unpackb(snapshot.pack_session(bob))
    key = bytes(32)
    body[7][9] = [[os.urandom(32), [part for n in range(MAX_KEPT) for part in (n, key)]], [os.urandom(32), [0, key]]]
    with pytest.raises(StoreError):
        snapshot.unpack_session(msgpack.packb([kind, version, body]))
    body[7][9] = body[7][9][:1]
    assert len(snapshot.unpack_session(msgpack.packb([kind, version, body])).state.backlog.skipped) == MAX_KEPT


@pytest.mark.parametrize("junk", [-1, True, 1.0, None, "1", b"", 2**64 - 1])
def test_number_that_is_none_is_refused(junk):
    for record, read, path in (
        (snapshot.pack_signed_prekey(SIGNED), snapshot.unpack_signed_prekey, (2, 0)),
        (snapshot.pack_one_time_prekey(ONE_TIME), snapshot.unpack_one_time_prekey, (2, 0)),
        (snapshot.pack_session(busy()[1]), snapshot.unpack_session, (2, 7, 4)),
        (snapshot.pack_session(busy()[1]), snapshot.unpack_session, (2, 7, 6)),
        (snapshot.pack_session(busy()[1]), snapshot.unpack_session, (2, 7, 8)),
        (snapshot.pack_session(busy()[1]), snapshot.unpack_session, (2, 7, 9, 0, 1, 0)),
    ):
        with pytest.raises(StoreError):
            read(msgpack.packb(put(msgpack.unpackb(record), path, junk)))


def test_message_number_beyond_32_bits_is_refused():
    body = msgpack.unpackb(snapshot.pack_session(busy()[1]))
    for path in ((2, 7, 4), (2, 7, 6), (2, 7, 8)):
        snapshot.unpack_session(msgpack.packb(put(body, path, 2**32)))  # the number after the last one
        with pytest.raises(StoreError):
            snapshot.unpack_session(msgpack.packb(put(body, path, 2**32 + 1)))
    with pytest.raises(StoreError):
        snapshot.unpack_session(msgpack.packb(put(body, (2, 7, 9, 0, 1, 0), 2**32)))


def test_too_many_ended_chains_are_refused():
    body = msgpack.unpackb(snapshot.pack_session(busy()[1]))
    snapshot.unpack_session(msgpack.packb(put(body, (2, 7, 10), [bytes(32)] * 32)))
    with pytest.raises(StoreError):
        snapshot.unpack_session(msgpack.packb(put(body, (2, 7, 10), [bytes(32)] * 33)))


def test_record_beyond_the_bound_is_not_even_decoded():
    for read in READERS:
        with pytest.raises(StoreError, match="larger than 1048576 bytes"):
            read(bytes((1 << 20) + 1))
        with pytest.raises(StoreError, match="damaged"):
            read(bytes(1 << 20))


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc1",
        b"\xd8\x01" + bytes(16),
        b"\x81\xc0\xc0",
        b"\xa1\xff",
        bytes(snapshot.MAX_RECORD + 1),
    ],
)
def test_bomb_is_refused(bomb):
    for read in READERS:
        with pytest.raises(StoreError):
            read(bomb)


def test_error_about_a_damaged_record_shows_no_key():
    packed = snapshot.pack_identity(ALICE)
    for damaged in (packed[:-1], packed[:-33] + b"\x1f" + packed[-32:]):
        with pytest.raises(StoreError) as caught:
            snapshot.unpack_identity(damaged)
        assert bytes(ALICE.signing_key).hex() not in str(caught.value)
        assert repr(bytes(ALICE.signing_key))[2:-1] not in str(caught.value)


# --- sealing --------------------------------------------------------------------------------------------------------


def test_sealed_record_opens_with_the_passphrase():
    key = SealingKey.create("correct horse \N{SNOWMAN}", os.urandom, **CHEAP)
    packed = snapshot.pack_identity(ALICE)
    sealed = key.seal(packed, "identity", os.urandom)
    assert bytes(ALICE.signing_key) not in sealed
    again = SealingKey.open("correct horse \N{SNOWMAN}", key.header)
    assert snapshot.unpack_identity(again.unseal(sealed, "identity")) == ALICE


def test_passphrase_is_its_text_however_it_was_composed():
    key = SealingKey.create("caf\u00e9", os.urandom, **CHEAP)
    SealingKey.open("cafe\u0301", key.header)


def test_passphrase_that_is_no_text_is_not_quoted():
    with pytest.raises(InvalidValue) as caught:
        SealingKey.create("secret\udcff", os.urandom, **CHEAP)
    assert caught.value.__cause__ is None
    assert "secret" not in str(caught.value)


def test_other_passphrase_is_refused_at_once():
    key = SealingKey.create("right", os.urandom, **CHEAP)
    for wrong in ("", "Right", "right "):
        with pytest.raises(StoreError, match="passphrase"):
            SealingKey.open(wrong, key.header)


def test_record_in_another_place_does_not_open():
    key = SealingKey.create("right", os.urandom, **CHEAP)
    sealed = key.seal(b"data", "session did:mesh:a", os.urandom)
    with pytest.raises(StoreError):
        key.unseal(sealed, "session did:mesh:b")


def test_changed_sealed_record_does_not_open():
    key = SealingKey.create("right", os.urandom, **CHEAP)
    sealed = key.seal(b"data", "label", os.urandom)
    for at in range(len(sealed)):
        with pytest.raises(StoreError):
            key.unseal(sealed[:at] + bytes((sealed[at] ^ 1,)) + sealed[at + 1 :], "label")
    for size in range(len(sealed)):
        with pytest.raises(StoreError):
            key.unseal(sealed[:size], "label")


def test_record_of_another_store_does_not_open():
    one, two = (SealingKey.create("same", os.urandom, **CHEAP) for _ in range(2))
    with pytest.raises(StoreError):
        two.unseal(one.seal(b"data", "label", os.urandom), "label")


def test_same_data_is_never_sealed_to_the_same_bytes():
    key = SealingKey.create("right", os.urandom, **CHEAP)
    assert len({key.seal(b"data", "label", os.urandom) for _ in range(100)}) == 100


def test_costs_are_stored_and_bounded():
    key = SealingKey.create("right", os.urandom, **CHEAP)
    kind, version, (salt, operations, memory, check) = msgpack.unpackb(key.header)
    assert (operations, memory) == (1, 8192)
    for costs in ((65, 8192), (1, 2**31), (0, 8192), (1, 0), (1, 8191), (-1, 8192), (1.0, 8192)):
        with pytest.raises(StoreError):
            SealingKey.open("right", msgpack.packb([kind, version, [salt, *costs, check]]))


def test_damaged_sealing_header_is_refused():
    key = SealingKey.create("right", os.urandom, **CHEAP)
    for size in range(len(key.header)):
        with pytest.raises(StoreError):
            SealingKey.open("right", key.header[:size])
    kind, version, body = msgpack.unpackb(key.header)
    for index, junk in ((0, b""), (0, 7), (3, b""), (3, None)):
        with pytest.raises(StoreError):
            SealingKey.open(
                "right", msgpack.packb([kind, version, [junk if at == index else one for at, one in enumerate(body)]])
            )


def test_sealing_key_is_not_shown():
    key = SealingKey.create("right", os.urandom, **CHEAP)
    assert repr(key) == "SealingKey(<secret>)"


def test_default_costs_are_not_cheap():
    key = SealingKey.create("right", os.urandom)
    _, _, (_, operations, memory, _) = msgpack.unpackb(key.header)
    assert operations >= 3
    assert memory >= 64 << 20


def test_seed_of_a_fixed_identity_is_where_the_format_says():
    identity = Identity(Ed25519Private(bytes(range(32))))
    assert snapshot.pack_identity(identity) == b"\x93\xa8identity\x01\x91\xc4\x20" + bytes(range(32))
