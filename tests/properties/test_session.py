"""Two peers under every schedule: whatever is sent and not lost is read exactly once, whatever else happens.

The network may delay, reorder, lose, repeat, change, invent and reflect messages; either peer may be replaced by its
snapshot at any time. A refusal must leave the session equal to what it was.
"""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from meshlib import snapshot
from meshlib.crypto.keys import X25519Private
from meshlib.crypto.prekeys import make_bundle, make_one_time_prekeys, make_signed_prekey
from meshlib.crypto.ratchet import MAX_KEPT, MAX_RETIRED, Header
from meshlib.crypto.x3dh import Dialect
from meshlib.errors import NotAuthentic, PeerError, Replayed, SessionNotReady, TooManySkipped
from meshlib.identity import Identity
from meshlib.session import Session, candidates

LIMIT = 6
"""Small, so that schedules of a few steps reach it."""

peers = st.sampled_from(["alice", "bob"])
places = st.integers(0, 10_000)


@dataclass
class Letter:
    """A message on its way, as it was sent."""

    header: Header
    ciphertext: bytes
    text: bytes


@dataclass
class End:
    """One peer, and what its messages have been through."""

    sessions: list[Session]
    """Several as long as the first message has not told which one the opening meant."""
    incoming: list[Letter] = field(default_factory=list)
    read: list[Letter] = field(default_factory=list)
    progress: dict[bytes, int] = field(default_factory=dict)
    """By ratchet key of the sender: the number after the highest one read."""
    chain: bytes | None = None
    """The sender's newest ratchet key that was read."""
    sent: int = 0

    @property
    def session(self) -> Session:
        assert len(self.sessions) == 1
        return self.sessions[0]


class Conversation(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 2**32), dialect=st.sampled_from(Dialect), used=st.integers(0, 1), otk=st.booleans())
    def begin(self, seed, dialect, used, otk):
        self.entropy = random.Random(seed).randbytes
        alice, bob = (Identity.generate(self.entropy) for _ in range(2))
        prekeys = [make_signed_prekey(bob, number, self.entropy) for number in range(2)]
        one_time = make_one_time_prekeys(9, 1, self.entropy)[0] if otk else None
        bundle = make_bundle(bob, prekeys[used], one_time)
        session, opening = Session.initiate(alice, alice.did, bob.did, bundle, dialect, self.entropy)
        guesses = list(candidates(bob, bob.did, alice.did, opening, prekeys, one_time, Dialect))
        self.meant = session.id
        self.ends = {"alice": End([session]), "bob": End(guesses)}

    def other(self, name):
        return self.ends["bob" if name == "alice" else "alice"]

    # --- honest traffic ---------------------------------------------------------------------------------------------

    @rule(name=peers, count=st.integers(1, LIMIT + 2))
    def send(self, name, count):
        end = self.ends[name]
        for _ in range(count):
            if len(end.sessions) > 1 or not end.session.can_send:
                with pytest.raises(SessionNotReady):
                    end.sessions[0].encrypt(b"too early", self.entropy)
                return
            text = f"{name} {end.sent}".encode()
            session, header, ciphertext = end.session.encrypt(text, self.entropy)
            end.sessions = [session]
            end.sent += 1
            self.other(name).incoming.append(Letter(header, ciphertext, text))

    @precondition(lambda self: any(end.incoming for end in self.ends.values()))
    @rule(name=peers, place=places)
    def deliver(self, name, place):
        end = self.ends[name]
        if end.incoming:
            self.take(end, end.incoming[place % len(end.incoming)])

    @rule(name=peers)
    def deliver_all_in_order(self, name):
        for letter in list(self.ends[name].incoming):
            self.take(self.ends[name], letter)

    def take(self, end, letter):
        """Deliver a genuine letter that was not read yet."""
        try:
            session, text = self.attempt(end, letter.header, letter.ciphertext)
        except TooManySkipped:
            assert self.gap(end, letter.header) > LIMIT
            return
        assert text == letter.text
        assert self.gap(end, letter.header) <= LIMIT
        assert session.id == self.meant
        end.sessions = [session]
        end.incoming.remove(letter)
        end.read.append(letter)
        header = letter.header
        if header.dh not in end.progress:
            end.chain = header.dh
        end.progress[header.dh] = max(end.progress.get(header.dh, 0), header.n + 1)

    def attempt(self, end, header, ciphertext):
        """Try a message on every session, as a client does. Whatever is refused must have changed nothing."""
        failure = None
        for session in end.sessions:
            before = snapshot.pack_session(session)
            try:
                return session.decrypt(header, ciphertext, self.entropy, max_skip=LIMIT)
            except PeerError as error:
                failure = error
            assert snapshot.pack_session(session) == before
        raise failure

    def gap(self, end, header):
        """How many messages before this one would have to be skipped, at most, in one chain."""
        if header.dh == end.chain:
            return header.n - end.progress[header.dh]
        if header.dh in end.progress:
            return 0
        return max(header.n, header.pn - end.progress.get(end.chain, 0) if end.chain else 0)

    # --- a bad network ----------------------------------------------------------------------------------------------

    @rule(name=peers, place=places)
    def lose(self, name, place):
        incoming = self.ends[name].incoming
        if incoming:
            del incoming[place % len(incoming)]

    @rule(name=peers, place=places)
    def repeat(self, name, place):
        end = self.ends[name]
        if not end.read:
            return
        letter = end.read[place % len(end.read)]
        recent = len(end.progress) - list(end.progress).index(letter.header.dh) - 1 <= MAX_RETIRED
        with pytest.raises(PeerError) as caught:
            self.attempt(end, letter.header, letter.ciphertext)
        assert isinstance(caught.value, Replayed if recent else (Replayed, NotAuthentic))

    @rule(name=peers, place=places, kind=st.sampled_from(["ciphertext", "dh", "n", "pn", "swap", "cut"]), bit=places)
    def corrupt(self, name, place, kind, bit):
        """Change a letter under way: refused, and the genuine one stays readable (it is delivered later)."""
        end = self.ends[name]
        if not end.incoming:
            return
        letter = end.incoming[place % len(end.incoming)]
        header, ciphertext = letter.header, letter.ciphertext
        match kind:
            case "ciphertext":
                ciphertext = flip(ciphertext, bit)
            case "cut":
                ciphertext = ciphertext[: bit % len(ciphertext)]
            case "dh":
                header = replace(header, dh=flip(header.dh, bit))
            case "n":
                header = replace(header, n=header.n ^ 1 << bit % 32)
            case "pn":
                header = replace(header, pn=header.pn ^ 1 << bit % 32)
            case "swap":
                ciphertext = end.incoming[bit % len(end.incoming)].ciphertext
        if (header, ciphertext) != (letter.header, letter.ciphertext):
            self.refuse(end, header, ciphertext)

    @rule(name=peers, dh=st.sampled_from(["fresh", "low", "known", "own"]), pn=st.integers(0, 12), n=st.integers(0, 12))
    def invent(self, name, dh, pn, n):
        end = self.ends[name]
        state = end.sessions[0].state
        own = state.own.public if hasattr(state, "own") else state.turn.own.public
        key = {
            "fresh": bytes(X25519Private.generate(self.entropy).public),
            "low": bytes(32),
            "known": end.chain or bytes(own),
            "own": bytes(own),
        }[dh]
        self.refuse(end, Header(key, pn, n), self.entropy(60))

    @rule(name=peers, place=places)
    def reflect(self, name, place):
        """Give a peer its own message back."""
        letters = self.other(name).incoming + self.other(name).read
        if letters:
            letter = letters[place % len(letters)]
            self.refuse(self.ends[name], letter.header, letter.ciphertext)

    def refuse(self, end, header, ciphertext):
        with pytest.raises(PeerError):
            self.attempt(end, header, ciphertext)

    # --- crashes ----------------------------------------------------------------------------------------------------

    @rule(name=peers)
    def restart(self, name):
        end = self.ends[name]
        restored = [snapshot.unpack_session(snapshot.pack_session(session)) for session in end.sessions]
        assert restored == end.sessions
        end.sessions = restored

    # --- always -----------------------------------------------------------------------------------------------------

    @invariant()
    def memory_is_bounded(self):
        for end in getattr(self, "ends", {}).values():
            for session in end.sessions:
                backlog = getattr(session.state, "backlog", None)
                if backlog is not None:
                    assert len(backlog.skipped) <= MAX_KEPT
                    assert len(backlog.retired) <= MAX_RETIRED

    def teardown(self):
        if not hasattr(self, "ends"):
            return
        for name in ("alice", "bob"):  # in order, nothing that is left can be out of reach unless too much was lost
            self.deliver_all_in_order(name)
        blocked = any(end.incoming for end in self.ends.values())
        for _ in range(2):
            for name, peer in (("alice", "bob"), ("bob", "alice")):
                before = len(self.ends[peer].read)
                self.send(name, 1)
                self.deliver_all_in_order(peer)
                lost_too_many = bool(self.ends[peer].incoming)
                blocked = blocked or lost_too_many or len(self.ends[peer].sessions) > 1
                assert blocked or len(self.ends[peer].read) == before + 1, "both ends agree in the end"
        texts = [letter.text for end in self.ends.values() for letter in end.read]
        assert len(texts) == len(set(texts)), "nothing is read twice"


def flip(raw, bit):
    at = bit // 8 % len(raw)
    return raw[:at] + bytes((raw[at] ^ 1 << bit % 8,)) + raw[at + 1 :]


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class TestLongConversation(Conversation.TestCase):
    settings = settings(max_examples=400, stateful_step_count=80, deadline=None)
    pytestmark = pytest.mark.slow
