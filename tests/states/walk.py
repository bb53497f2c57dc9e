"""Every state two clients and a relay can come to, within budgets, by walking all of them.

Two production cores, a relay that keeps what is not acknowledged and a registry that answers when it likes are one
value, a *world*. Everything that can happen next is a move; breadth first, every move of every world is made once.
Worlds that differ only in the names of keys and ids are one world.
"""

import re
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field, is_dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

from meshlib.client.core import ClientCore, Link, Profile
from meshlib.client.keyring import DatedPrekey
from meshlib.client.peers import Candidate, Entry, Peer, Strand
from meshlib.clock import Instant
from meshlib.config import Prekeys
from meshlib.crypto.keys import X25519Private, X25519Public
from meshlib.crypto.prekeys import OneTimePrekey, make_bundle
from meshlib.identity import Did, Identity
from meshlib.session import Session
from meshlib.store.memory import MemoryStore
from meshlib.store.protocol import Incoming, Outcome, Outgoing, SavedState
from meshlib.testing import EPOCH, SeededEntropy
from meshlib.wire.codec import decode, encode
from meshlib.wire.encoding import MessageId
from meshlib.wire.frames import (
    Ack,
    Connected,
    Knock,
    KnockAccept,
    KnockReject,
    Message,
    Receipt,
    ReceiptState,
)

NAMES = ("alice", "bob")
IDENTITIES = {name: Identity.generate(SeededEntropy(name)) for name in NAMES}
DIDS = {name: IDENTITIES[name].did for name in NAMES}
NAME_OF = {did: name for name, did in DIDS.items()}
PREKEYS = Prekeys(one_time=4, top_up_below=1)
ROUTED = Knock | KnockAccept | KnockReject | Message
Move = tuple[str, str]
"""What happens, and to whom."""


@dataclass(frozen=True)
class Budget:
    """How much may happen on a path."""

    sends: tuple[int, int]
    """Messages of alice and of bob."""
    restarts: int
    """Processes that die, at any moment between two steps, and come back with what they had saved."""
    crashes: int = 0
    """Processes that die between saving and writing, and come back."""
    delays: int = 0
    """How often a timer runs out although frames are still on their way."""


@dataclass
class Agent:
    """One client: a core, its disk, and what its application was given."""

    name: str
    core: ClientCore
    store: MemoryStore
    given: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    asked: list[Did] = field(default_factory=list)
    """Bundles the registry has been asked for and not given."""
    socket: list[bytes] = field(default_factory=list)
    """What the relay has written to this agent and the network still carries."""
    lives: int = 1


class Unhealthy(AssertionError):
    """A world that must not be."""


class World:
    """Two agents, what lies at the relay, and what may still happen."""

    def __init__(self, budget: Budget, core: type[ClientCore] = ClientCore) -> None:
        self.now = Instant(1_000.0, EPOCH)
        self.left = [*budget.sends, budget.restarts, budget.crashes, budget.delays]
        self.kept: dict[tuple[str, str, str], bytes] = {}
        """Frames not acknowledged, by recipient, sender and id."""
        self.acked: dict[tuple[str, str, str], bytes] = {}
        self.one_time: dict[str, list[OneTimePrekey]] = {}
        self.agents: dict[str, Agent] = {}
        for name in NAMES:
            store = MemoryStore()
            profile = Profile(IDENTITIES[name], DIDS[name], heartbeat=float("inf"), ack_when_saved=True)
            first = core(profile, SavedState(), SeededEntropy(f"{name} 1"), prekeys=PREKEYS)
            upload = first.replenish(0, self.now)
            store.save(first.changes())
            self.one_time[name] = list(upload.one_time)
            self.agents[name] = Agent(name, first, store)
        for name in NAMES:
            self._connect(self.agents[name])

    # --- what can happen ---------------------------------------------------------------------------------------------

    def moves(self) -> Iterator[Move]:
        """Everything that can happen next."""
        for index, name in enumerate(NAMES):
            agent = self.agents[name]
            if self.left[index]:
                yield "send", name
                if self.left[3]:
                    yield "send and die", name
            if agent.socket:
                yield "receive", name
                if self.left[3]:
                    yield "receive and die", name
            if agent.asked:
                yield "bundle", name
            if self.left[2]:
                yield "restart", name
            quiet = not any(one.socket or one.asked for one in self.agents.values())
            if agent.core.next_deadline() < float("inf") and (quiet or self.left[4]):
                yield "wait", name

    def make(self, move: Move) -> None:
        """Let it happen."""
        what, name = move
        agent = self.agents[name]
        dies = what.endswith(" and die")
        match what.removesuffix(" and die"):
            case "send":
                self._send(agent)
            case "receive":
                agent.core.receive(agent.socket.pop(0), self.now)
            case "bundle":
                self._bundle(agent, agent.asked.pop(0))
            case "restart":
                self.left[2] -= 1
                self._restart(agent)
                return
            case "wait":
                if any(one.socket or one.asked for one in self.agents.values()):
                    self.left[4] -= 1
                passed = max(0.0, agent.core.next_deadline() - self.now.monotonic)
                self.now = Instant(self.now.monotonic + passed, self.now.utc + passed)
                agent.core.tick(self.now)
        if dies:
            self.left[3] -= 1
            agent.store.save(agent.core.changes())
            self._restart(agent)
        else:
            self._step(agent)

    def _send(self, agent: Agent) -> None:
        self.left[NAMES.index(agent.name)] -= 1
        text = f"{agent.name}-{len(agent.sent)}"
        agent.sent.append(text)
        agent.core.send(self.other(agent).core.profile.did, text, self.now, MessageId(text))

    def _bundle(self, agent: Agent, did: Did) -> None:
        name = NAME_OF[did]
        one_time = self.one_time[name].pop(0) if self.one_time[name] else None
        signed = self.agents[name].core.keyring.signed[0].prekey
        agent.core.bundle(did, make_bundle(IDENTITIES[name], signed, one_time), self.now)

    def _restart(self, agent: Agent) -> None:
        core = agent.core
        agent.lives += 1
        agent.core = type(core)(
            core.profile, agent.store.load(), SeededEntropy(f"{agent.name} {agent.lives}"), prekeys=PREKEYS
        )
        agent.asked.clear()
        self._connect(agent)

    def _connect(self, agent: Agent) -> None:
        agent.socket.clear()
        agent.core.opened(self.now, "challenge")
        agent.core.receive(encode(Connected(("receipts",))), self.now)
        agent.socket.extend(raw for (to, _, _), raw in self.kept.items() if to == agent.name)
        self._step(agent)

    def _step(self, agent: Agent) -> None:
        """What a shell does: save, write, hand over."""
        agent.store.save(agent.core.changes())
        for raw in agent.core.writes():
            self._carry(agent, raw)
        agent.core.sent()
        agent.core.events()
        for message in agent.core.messages():
            agent.given.append(str(message.payload))
            agent.core.confirm(message.sender, message.id)
        agent.store.save(agent.core.changes())
        for raw in agent.core.writes():
            self._carry(agent, raw)
        agent.asked.extend(agent.core.fetches())

    # --- the relay ---------------------------------------------------------------------------------------------------

    def _carry(self, agent: Agent, raw: bytes) -> None:
        """Keep a frame until it is acknowledged; the same bytes are kept once, other bytes under an id replace it."""
        frame = decode(raw)
        if isinstance(frame, Ack):
            self._acknowledge(agent, frame)
        elif isinstance(frame, ROUTED):
            recipient = self.agents[NAME_OF[Did(frame.recipient)]]
            key = (recipient.name, agent.name, frame.id)
            if self.acked.get(key) == raw:
                self._tell(agent, frame.id, ReceiptState.DELIVERED)
            elif self.kept.get(key) != raw:
                self.kept.pop(key, None)
                self.kept[key] = raw
                recipient.socket.append(raw)

    def _acknowledge(self, agent: Agent, ack: Ack) -> None:
        sender = self.other(agent)
        key = (agent.name, sender.name, ack.id)
        raw = self.kept.pop(key, None)
        if raw is None:
            return
        if ack.unread:
            self._tell(sender, ack.id, ReceiptState.UNREAD)
        else:
            self.acked[key] = raw
            self._tell(sender, ack.id, ReceiptState.DELIVERED)

    def _tell(self, agent: Agent, message: str, state: ReceiptState) -> None:
        if agent.core.outbox.get(MessageId(message)) is not None:  # of knocks and answers nobody wants to know
            agent.socket.append(encode(Receipt(message, state)))

    # --- what must hold ----------------------------------------------------------------------------------------------

    def other(self, agent: Agent) -> Agent:
        """The one at the other end."""
        return self.agents[NAMES[1 - NAMES.index(agent.name)]]

    def check(self) -> None:
        """What holds at every moment: nothing twice, nothing out of order."""
        for agent in self.agents.values():
            sent = self.other(agent).sent
            if agent.given != sent[: len(agent.given)]:
                raise Unhealthy(f"{agent.name} was given {agent.given} of {sent}")
            if agent.core.link is not Link.UP:
                raise Unhealthy(f"{agent.name} is {agent.core.link}")

    def check_rest(self) -> None:
        """What holds once nothing can happen any more."""
        for agent in self.agents.values():
            if agent.given != self.other(agent).sent:
                raise Unhealthy(f"{agent.name} was given {agent.given} of {self.other(agent).sent}")
            if agent.core.outbox_size or self.kept or len(agent.core.held) or len(agent.core.overtaking):
                raise Unhealthy(f"something is left: {agent.core.outbox.all()}, {list(self.kept)}")
            if agent.core.peer(DIDS[self.other(agent).name]).entry is not Entry.IDLE:
                raise Unhealthy(f"{agent.name} is still on the way in")

    def talk(self) -> None:
        """Both say one thing more, nothing goes wrong any more, and everything arrives on one session."""
        for _ in range(2):
            for index, name in enumerate(NAMES):
                self.left[index] = 1
                self.make(("send", name))
                self.settle()
        self.check_rest()
        chosen = {self.sending(agent) for agent in self.agents.values()}
        if len(chosen) != 1 or None in chosen:
            raise Unhealthy(f"they do not send on one session: {chosen}")

    def settle(self) -> None:
        """Let the first thing that can happen happen until nothing can."""
        self.left = [0] * len(self.left)
        for _ in range(1_000):
            move = next(self.moves(), None)
            if move is None:
                return
            self.make(move)
            self.check()
        raise Unhealthy("no end of it")

    def sending(self, agent: Agent) -> bytes | None:
        """The session an agent sends on."""
        strand = agent.core.peer(DIDS[self.other(agent).name]).sending()
        return strand and strand.session.id

    def crossing(self) -> bool:
        """Whether both have a knock out."""
        return all(agent.core.peer(DIDS[self.other(agent).name]).knock_id for agent in self.agents.values())

    def copy(self) -> "World":
        """Another world that is the same."""
        twin: World = _copied(self)
        return twin

    def fingerprint(self) -> Hashable:
        """Equal for worlds that differ in nothing but names of keys and ids, and in the time of day."""
        tokens: list[Hashable] = []
        _flatten(self, self.now.monotonic, tokens)
        names: dict[Hashable, int] = {}
        return hash(tuple([names.setdefault(token, len(names)) if type(token) is _Name else token for token in tokens]))


# --- copies and fingerprints ------------------------------------------------------------------------------------------

_MUTABLE = (World, Agent, ClientCore, MemoryStore, SeededEntropy)


_shared: dict[type, bool] = dict.fromkeys((str, int, float, bool, bytes, tuple, type(None)), True)
_containers = (dict, OrderedDict, list, deque)


def _is_shared(kind: type) -> bool:
    """Whether values of this type never change."""
    known = _shared.get(kind)
    if known is None:
        frozen = is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        ours = kind.__module__.startswith("meshlib.") and hasattr(kind, "__dict__") and "__slots__" not in vars(kind)
        mutable = issubclass(kind, _MUTABLE) or (ours and not frozen and not issubclass(kind, Enum | tuple))
        known = _shared[kind] = not mutable and kind not in _containers
    return known


def _copied(value: Any) -> Any:
    """A copy that shares what is never changed."""
    kind = type(value)
    if _is_shared(kind):
        return value
    shared = _shared
    if kind is dict or kind is OrderedDict:
        return kind((key, one if shared.get(type(one)) else _copied(one)) for key, one in value.items())
    if kind is list:
        return [one if shared.get(type(one)) else _copied(one) for one in value]
    if kind is deque:
        return deque((one if shared.get(type(one)) else _copied(one) for one in value), value.maxlen)
    twin = object.__new__(kind)
    twin.__dict__.update((name, one if shared.get(type(one)) else _copied(one)) for name, one in value.__dict__.items())
    return twin


class _Name(str):
    """The name of a key or an id: which one it is does not matter, only where it stands again."""

    __slots__ = ()


_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
_SKIPPED = {
    *("_entropy", "profile", "identity", "policy", "limits", "_limits", "_timeouts", "_events", "now", "ts", "lives"),
    *("_knock_rate", "_written"),  # bounds that no walk comes near
    *("frames_received", "bytes_received", "queued"),  # for people: they decide nothing
}
_CACHED = {Peer, Strand, Candidate, Session, Outgoing, Incoming, Outcome, OneTimePrekey, DatedPrekey}
"""Values without a deadline in them."""
_LONG_AGO = 1e8


def _flatten(value: Any, now: float, tokens: list[Hashable]) -> None:
    kind = type(value)
    if kind in _CACHED:
        tokens.extend(_value_tokens(_Same(value)))
    elif kind is bytes:
        if value.startswith(b'{"v":1'):
            tokens.extend(_frame_tokens(value))
        else:
            tokens.append(_Name(value.hex()))
    elif kind is str or isinstance(value, str):
        tokens.append(_Name(value) if _UUID.fullmatch(value) else str(value))
    elif kind is float:
        tokens.append(value if value == float("inf") else round(value - now, 3) if value < _LONG_AGO else "utc")
    elif value is None or kind in (int, bool):
        tokens.append(value)
    elif isinstance(value, dict | OrderedDict):
        tokens.append(len(value))
        for key, one in value.items():
            _flatten(key, now, tokens)
            _flatten(one, now, tokens)
    elif isinstance(value, list | deque | tuple):
        tokens.append(len(value))
        for one in value:
            _flatten(one, now, tokens)
    elif isinstance(value, X25519Private):
        tokens.append(_Name(bytes(value.public).hex()))
    elif kind.__module__ == "meshlib.crypto.keys":
        tokens.append(_Name(_raw(value)))
    elif hasattr(value, "__dict__") or hasattr(kind, "__slots__"):
        _flatten_fields(value, now, tokens)
    else:
        tokens.append(repr(value))


class _Same:
    """A value that never changes, equal to itself only, so that it is flattened once."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value


@lru_cache(maxsize=200_000)
def _value_tokens(same: _Same) -> tuple[Hashable, ...]:
    tokens: list[Hashable] = []
    _flatten_fields(same.value, 0.0, tokens)
    return tuple(tokens)


def _flatten_fields(value: Any, now: float, tokens: list[Hashable]) -> None:
    kind = type(value)
    tokens.append(kind.__name__)
    names = value._fields if isinstance(value, tuple) else _fields(kind, value)
    for name in names:
        _flatten(getattr(value, name), now, tokens)


@lru_cache(maxsize=200_000)
def _frame_tokens(raw: bytes) -> tuple[Hashable, ...]:
    tokens: list[Hashable] = []
    _flatten(decode(raw), 0.0, tokens)
    return tuple(tokens)


def _raw(key: Any) -> str:
    return bytes(key).hex() if isinstance(key, X25519Public) else str(key.raw.hex())


def _fields(kind: type, value: object) -> Iterable[str]:
    if isinstance(value, Enum):
        return ("name",)
    names = getattr(kind, "__struct_fields__", None) or getattr(kind, "__dataclass_fields__", None)
    if names is None or not is_dataclass(kind):
        names = names or tuple(vars(value))
    return [name for name in names if name not in _SKIPPED]


# --- the walk ---------------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """What a walk came to."""

    budget: Budget
    states: int = 0
    moves: int = 0
    rests: int = 0
    """States in which nothing can happen any more."""
    crossings: int = 0
    """States in which two knocks cross."""
    depth: int = 0
    """The longest way to a new state."""
    entries: set[tuple[Entry, Entry]] = field(default_factory=set)
    """Pairs of where the two stood in their own way in."""

    def __str__(self) -> str:
        return (
            f"{self.states} states, {self.moves} moves, {self.rests} at rest, {self.crossings} with crossing knocks, "
            f"{self.depth} moves deep, {len(self.entries)} pairs of entry states: {self.budget}"
        )


def walk(budget: Budget, bound: int = 1_000_000, core: type[ClientCore] = ClientCore) -> Found:
    """Make every move of every state.

    Raises:
        Unhealthy: a state that must not be, with the moves that lead there; or a circle, on which nothing would ever
            come to rest.
    """
    found = Found(budget)
    root = World(budget, core)
    ids: dict[Hashable, int] = {root.fingerprint(): 0}
    edges: list[list[int]] = [[]]
    ways: list[tuple[int, Move] | None] = [None]
    frontier = [(0, root)]
    while frontier:
        found.depth += 1
        reached: list[tuple[int, World]] = []
        for number, world in frontier:
            _look(world, found)
            moves = list(world.moves())
            try:
                if not moves:
                    found.rests += 1
                    world.check_rest()
                    world.talk()
                for move in moves:
                    found.moves += 1
                    twin = world.copy()
                    way = move
                    twin.make(move)
                    twin.check()
                    fingerprint = twin.fingerprint()
                    known = ids.get(fingerprint)
                    if known is None:
                        known = ids[fingerprint] = len(ids)
                        edges.append([])
                        ways.append((number, move))
                        reached.append((known, twin))
                    edges[number].append(known)
            except (Unhealthy, AssertionError, KeyError) as problem:
                path = [*_path(ways, number), *([way] if moves else [])]
                raise Unhealthy(f"{type(problem).__name__} {problem} after {path}") from problem
        if len(ids) > bound:
            raise Unhealthy(f"more than {bound} states")
        frontier = reached
    found.states = len(ids)
    _refuse_circles(edges, ways)
    return found


def _look(world: World, found: Found) -> None:
    found.crossings += world.crossing()
    alice, bob = (agent.core.peer(DIDS[world.other(agent).name]).entry for agent in world.agents.values())
    found.entries.add((alice, bob))


def _path(ways: list[tuple[int, Move] | None], number: int) -> list[Move]:
    path: list[Move] = []
    while (way := ways[number]) is not None:
        number, move = way
        path.append(move)
    return path[::-1]


def _refuse_circles(edges: list[list[int]], ways: list[tuple[int, Move] | None]) -> None:
    """Without circles, every path ends in one of the states at rest."""
    arriving = [0] * len(edges)
    for targets in edges:
        for target in targets:
            arriving[target] += 1
    ready = [number for number, count in enumerate(arriving) if not count]
    passed = 0
    while ready:
        number = ready.pop()
        passed += 1
        for target in edges[number]:
            arriving[target] -= 1
            if not arriving[target]:
                ready.append(target)
    if passed != len(edges):
        stuck = next(number for number, count in enumerate(arriving) if count)
        raise Unhealthy(f"it may go round for ever after {_path(ways, stuck)}")
