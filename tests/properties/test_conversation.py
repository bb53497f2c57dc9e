"""Two to three agents under any schedule of sends, repeats, garbage, forgeries and restarts end in agreement."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from meshlib.testing import MemoryMesh
from meshlib.wire.codec import decode, encode
from meshlib.wire.frames import Message

NAMES = ("alice", "bob", "carol")


class Conversation(RuleBasedStateMachine):
    """The mesh keeps what is not acknowledged, as a relay does; agents keep what they saved."""

    @initialize()
    def start(self):
        self.mesh = MemoryMesh()
        self.agents = {name: self.mesh.agent(name, ack_when_saved=True) for name in NAMES}
        self.sent = {(one, other): [] for one in NAMES for other in NAMES if one != other}
        self.handed = {name: [] for name in NAMES}
        self.seen = []

    def gather(self):
        for name, agent in self.agents.items():
            while agent.received:
                message = agent.received.pop(0)
                if not message.redelivered:
                    self.handed[name].append((message.sender, message.payload))
                agent.core.confirm(message.sender, message.id)
                agent.step()

    def deliver(self, agent, raw=None):
        if raw is None:
            raw = self.mesh.deliver(agent)
            if raw is not None:
                self.seen.append((agent.name, raw))
        else:
            agent.receive(raw)
        self.gather()

    @rule(sender=st.sampled_from(NAMES), recipient=st.sampled_from(NAMES))
    def send(self, sender, recipient):
        if sender == recipient:
            return
        payload = f"{sender}-{recipient}-{len(self.sent[sender, recipient])}"
        self.sent[sender, recipient].append(payload)
        self.agents[sender].send(self.agents[recipient], payload)

    @rule(name=st.sampled_from(NAMES), count=st.integers(1, 5))
    def receive(self, name, count):
        for _ in range(count):
            self.deliver(self.agents[name])

    @rule(pick=st.integers(0, 10_000))
    def repeat_an_old_frame(self, pick):
        if self.seen:
            name, raw = self.seen[pick % len(self.seen)]
            self.deliver(self.agents[name], raw)

    @rule(name=st.sampled_from(NAMES), junk=st.binary(max_size=80))
    def receive_junk(self, name, junk):
        self.deliver(self.agents[name], junk)

    @rule(pick=st.integers(0, 10_000), flip=st.integers(0, 10_000))
    def forge_a_message(self, pick, flip):
        frames = [(name, decode(raw)) for name, raw in self.seen]
        messages = [(name, frame) for name, frame in frames if isinstance(frame, Message)]
        if not messages:
            return
        name, frame = messages[pick % len(messages)]
        ciphertext = bytearray(frame.ciphertext)
        ciphertext[flip % len(ciphertext)] ^= 1
        forged = Message(frame.sender, frame.recipient, f"forged-{flip}", frame.ts, frame.header, bytes(ciphertext))
        self.deliver(self.agents[name], encode(forged))

    @rule(name=st.sampled_from(NAMES))
    def restart(self, name):
        self.agents[name] = self.mesh.restart(self.agents[name])
        self.gather()

    @rule(seconds=st.floats(0.1, 4.0))
    def time_passes(self, seconds):
        self.mesh.clock.advance(seconds)
        for agent in self.agents.values():
            agent.core.tick(self.mesh.clock.now)
            agent.step()
        self.gather()

    @invariant()
    def nothing_is_handed_over_twice(self):
        for handed in getattr(self, "handed", {}).values():
            assert len(handed) == len(set(handed))

    def teardown(self):
        if not hasattr(self, "mesh"):
            return
        for _ in range(3):
            for sender, recipient in self.sent:
                if self.sent[sender, recipient] or self.sent[recipient, sender]:
                    self.send(sender, recipient)
            self.settle()
        self.everything_arrived_in_order()
        self.both_sides_send_on_the_same_session()

    def settle(self):
        for _ in range(8):
            self.mesh.settle()
            self.gather()
            self.time_passes(1.0)

    def both_sides_send_on_the_same_session(self):
        for (one, other), payloads in self.sent.items():
            if payloads:
                ours = self.agents[one].core.peer(self.agents[other].did).sending()
                theirs = self.agents[other].core.peer(self.agents[one].did).sending()
                assert ours.session.id == theirs.session.id

    def everything_arrived_in_order(self):
        dids = {name: agent.did for name, agent in self.agents.items()}
        for (sender, recipient), payloads in self.sent.items():
            got = [payload for did, payload in self.handed[recipient] if did == dids[sender]]
            assert got == payloads, f"{sender} to {recipient}"
        assert all(agent.core.outbox_size == 0 for agent in self.agents.values())


Conversation.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestConversation = Conversation.TestCase


def test_a_message_survives_any_number_of_restarts():
    conversation = Conversation()
    conversation.start()
    conversation.send("bob", "alice")
    for _ in range(25):
        conversation.restart("alice")
    conversation.teardown()
