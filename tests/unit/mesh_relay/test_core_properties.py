"""Agents come and go, send, ack, stall and crash, the relay restarts: nobody loses a frame, nobody gets one twice."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from mesh_relay.links import Link

from meshlib.identity import Identity
from tests.unit.mesh_relay.kit import ALICE, BOB, CAROL, Relay, ack, message

_AGENTS = (ALICE, BOB, CAROL)
_agents = st.sampled_from(_AGENTS)
_FEATURES = ["receipts"]


_ids = st.sampled_from("1234")
_frames = st.one_of(
    st.builds(ack, _ids),
    st.builds(lambda frame_id, who: ack(frame_id, **{"from": who.did}), _ids, _agents),
    st.builds(lambda frame_id: ack(frame_id, unread=True), _ids),
    st.builds(lambda who, frame_id: message(who.did, frame_id), _agents, _ids),
    st.sampled_from([b'{"type":"fetch_pending"}', b"{}", b"[]", b'{"type":"disconnect"}']),
)


@given(st.lists(_frames, max_size=12), st.booleans(), st.booleans(), st.sampled_from([None, _FEATURES]))
def test_messages_that_come_together_do_what_each_does_by_itself(
    frames: list[bytes], waited: bool, stored: bool, features: list[str] | None
) -> None:
    outcomes = []
    for together in (True, False):
        relay = Relay(acked_each=6)
        alice, carol = relay.join(ALICE, _FEATURES), relay.join(CAROL, _FEATURES)
        bob = None if waited else relay.join(BOB, features)
        for number in "1234":
            relay.say(alice, message(BOB.did, number))
            relay.say(carol, message(BOB.did, number, kind="knock" if number == "3" else "message"))
        if waited or stored:
            relay.commit()
        bob = bob or relay.join(BOB, features)
        relay.commit(everything=False)
        for batch in [frames] if together else [[frame] for frame in frames]:
            relay.say(bob, *batch)
        kept, acked = relay.core.kept, len(relay.core.acked)
        relay.commit()
        outcomes.append((kept, acked, [relay.got[link] for link in (alice, bob, carol)], relay.inbox.open().usage))
    assert outcomes[0] == outcomes[1]


class Delivery(RuleBasedStateMachine):
    """The model: what each recipient must still get, in order, and what each link has been sent."""

    @initialize(strict=st.booleans())
    def start(self, strict: bool) -> None:
        self.options: dict[str, Any] = {
            "durability": "strict" if strict else "relaxed",
            "outgoing_high": 2000,
            "outgoing_low": 200,
            "page_frames": 3,
            "page_bytes": 1500,
        }
        self.relay = Relay(**self.options)
        self.links: dict[Identity, Link] = {}
        self.number = 0
        self.unacked: dict[Identity, dict[str, bytes]] = {who: {} for who in _AGENTS}
        self.committed: set[str] = set()
        self.acked: set[str] = set()

    def refresh(self) -> None:
        for who, link in self.links.items():
            ids = self.relay.ids(link)
            assert len(ids) == len(set(ids)), "a frame was pushed twice on one connection"
            numbers = [int(frame_id) for frame_id in ids]
            assert numbers == sorted(numbers), "a frame overtook another"
            for frame_id, state in self.relay.receipts(link):
                if state == "stored":
                    self.committed.add(frame_id)
                assert state != "delivered" or frame_id in self.acked
            assert self.relay.errors(link) == [], who.did

    @rule(who=_agents)
    def connect(self, who: Identity) -> None:
        self.links[who] = self.relay.join(who, _FEATURES)

    @rule(who=_agents)
    def drop(self, who: Identity) -> None:
        link = self.links.pop(who, None)
        if link is not None:
            self.relay.core.lost(link)

    @rule(sender=_agents, to=_agents, size=st.sampled_from((0, 700)), knock=st.booleans())
    def send(self, sender: Identity, to: Identity, size: int, knock: bool) -> None:
        if sender in self.links:
            self.number += 1
            kind = "knock" if knock else "message"
            frame = message(to.did, str(self.number), sender=sender.did, kind=kind, body="x" * size)
            self.unacked[to][str(self.number)] = frame
            self.relay.say(self.links[sender], frame)

    @precondition(lambda self: self.number)
    @rule(sender=_agents, to=_agents, pick=st.integers(0, 1000))
    def retransmit(self, sender: Identity, to: Identity, pick: int) -> None:
        candidates = [frame for frame in self.unacked[to].values() if f'"from":"{sender.did}"'.encode() in frame]
        if candidates and sender in self.links:
            self.relay.say(self.links[sender], candidates[pick % len(candidates)])

    @rule(who=_agents, pick=st.integers(0, 1000))
    def acknowledge(self, who: Identity, pick: int) -> None:
        if who not in self.links:
            return
        pushed = [frame_id for frame_id in self.relay.ids(self.links[who]) if frame_id in self.unacked[who]]
        if pushed:
            frame_id = pushed[pick % len(pushed)]
            del self.unacked[who][frame_id]
            self.acked.add(frame_id)
            self.relay.say(self.links[who], ack(frame_id))

    @rule(who=_agents)
    def stall(self, who: Identity) -> None:
        if who in self.links:
            self.relay.stalled.add(self.links[who])

    @rule(who=_agents)
    def read_on(self, who: Identity) -> None:
        if who in self.links and self.links[who].open:
            self.relay.drain(self.links[who])

    @rule(everything=st.booleans(), fails=st.booleans(), between=_agents)
    def transact(self, everything: bool, fails: bool, between: Identity) -> None:
        """One transaction, with an ack while it runs."""
        work = self.relay.core.take_work(self.relay.now, everything=everything)
        self.acknowledge(between, 0)
        if fails:
            self.relay.core.failed(work)
        else:
            self.relay.core.stored(work, self.relay.inbox.run(work), self.relay.now)
        self.relay.carry_out()

    @rule()
    def kill_and_restart(self) -> None:
        """Only what was said to be stored has to survive."""
        self.refresh()
        now = self.relay.now
        self.relay = Relay(self.relay.inbox, **self.options)
        self.relay.now = now
        self.links = {}
        for who in _AGENTS:
            kept = {usage_id for usage_id in self.unacked[who] if usage_id in self.committed}
            self.unacked[who] = {frame_id: frame for frame_id, frame in self.unacked[who].items() if frame_id in kept}

    @invariant()
    def every_link_is_in_order_and_free_of_duplicates(self) -> None:
        if hasattr(self, "links"):
            self.refresh()

    def teardown(self) -> None:
        """In the end everybody connects and reads: everything that is owed arrives, and nothing is left over."""
        if not hasattr(self, "links"):
            return
        for who in _AGENTS:
            link = self.relay.join(who, _FEATURES)
            self.relay.commit()
            owed = set(self.unacked[who])
            got = set(self.relay.ids(link))
            assert owed <= got
            self.relay.say(link, *(ack(frame_id) for frame_id in got))
        self.relay.commit()
        assert self.relay.core.kept == (0, 0, 0)
        assert self.relay.core.uncommitted == 0
        assert self.relay.inbox.open().usage == []


TestDelivery = Delivery.TestCase
TestDelivery.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
