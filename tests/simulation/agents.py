"""Agents: the production client core behind a shell that takes the same steps as :class:`meshlib.MeshClient`.

Between any two of these steps the process can be killed. What its disk holds then is all that the next one knows.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from meshlib.client.core import ClientCore, Link, Profile
from meshlib.client.epochs import EPOCH_KEY, published_epoch
from meshlib.client.events import Disconnected, Event, KnockReceived, Received
from meshlib.client.registry import LARGEST_CORRECTION, SKEW_WORTH_CORRECTING
from meshlib.clock import Instant
from meshlib.config import Backoff, Limits, Prekeys, Timeouts
from meshlib.crypto.x3dh import Dialect
from meshlib.errors import (
    AgentNotFound,
    MalformedFrame,
    MeshError,
    PeerError,
    QueueFull,
    RegistryRefused,
    ServiceError,
    StoreError,
    TransportError,
)
from meshlib.identity import Did, Identity, parse_did
from meshlib.store.memory import MemoryStore
from meshlib.store.protocol import Changes, SavedState
from meshlib.testing import SeededEntropy
from meshlib.wire import registry as wire
from meshlib.wire.encoding import timestamp
from tests.simulation.invariants import lane_of
from tests.simulation.network import Killed, Network, Process, Socket

if TYPE_CHECKING:
    from tests.simulation.invariants import Ledger
    from tests.simulation.servers import Registry, Relay

HOUSEKEEPING = 20.0
"""Seconds between two looks at what the registry has left of us."""
TRY_AGAIN = 5.0
PREKEYS = Prekeys(
    one_time=6, top_up_below=3, rotate_after=60.0, usable_after_rotation=900.0, check_every=HOUSEKEEPING, held=60
)


class Disk(MemoryStore):
    """Committed state: what outlives the process."""

    durable = True

    def __init__(self) -> None:
        super().__init__()
        self.full = 0
        """Saves that will fail."""

    def boot(self) -> SavedState:
        """What a process that starts finds here."""
        return self.load()

    def save(self, changes: Changes) -> None:
        if self.full > 0:
            self.full -= 1
            raise StoreError("no space left on device")
        super().save(changes)


class Kind(Enum):
    """What an agent is made of."""

    OURS = "ours"
    ASKING = "its knock policy asks somebody, who takes time, says no, or says nothing"
    LIKE_SDK = "keeps nothing that outlives its process, and knows no extensions"
    LEGACY = "speaks agt-4 and calls itself what it likes"


@dataclass
class Agent:
    """An agent's machine: key, disk, clock and application; ``process`` is what runs on it, if something does."""

    name: str
    net: Network
    relay: "Relay"
    registry: "Registry"
    ledger: "Ledger"
    shell_type: "type[ClientProcess]"
    core_type: type[ClientCore] = ClientCore
    disk: Disk = field(default_factory=Disk)
    limits: Limits = field(default_factory=Limits)
    trusts: frozenset[str] = frozenset()
    """Peers whose plaintext is taken until they are verified."""
    skew: float = 0.0
    boots: int = 0
    down_for: float = 1.0
    failures: int = 0
    """Messages on which the application will fail."""
    copies: list[Disk] = field(default_factory=list)
    """Backups of the disk."""
    kind: Kind = Kind.OURS
    process: "ClientProcess | None" = None

    def __post_init__(self) -> None:
        self.identity = Identity.generate(SeededEntropy(f"{self.net.seed}/{self.name}"))
        self.did = parse_did(f"did:agentmesh:{self.name}") if self.kind is Kind.LEGACY else self.identity.did

    @property
    def forgetful(self) -> bool:
        """Whether it keeps nothing that outlives its process, as an SDK."""
        return self.kind is Kind.LIKE_SDK

    def start(self) -> None:
        """Start a process, if none runs."""
        if self.process is None:
            if self.forgetful and self.boots:
                self.lose_disk()
            self.boots += 1
            self.process = self.shell_type(self)
            self.net.run_in(self.process, self.process.start)

    def lose_disk(self) -> None:
        """Nothing is left but the identity: somebody puts an empty disk in place."""
        self.disk = type(self.disk)()
        self.ledger.store_lost(self)

    def copy_disk(self) -> None:
        """Take a backup."""
        self.copies.append(deepcopy(self.disk))

    def roll_back(self) -> bool:
        """Put the last backup in place. Whether there is one."""
        if not self.copies:
            return False
        if self.process is not None:
            self.process.die()
        self.disk = self.copies.pop()
        self.ledger.rolled_back(self)
        return True

    def died(self) -> None:
        """The process is gone; somebody starts another."""
        self.process = None
        self.net.after(self.down_for, None, self.start)


class ClientProcess(Process):
    """One run of a client, from start to death."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent.net, agent.name)
        self.agent = agent
        self.ledger = agent.ledger
        self.chance = self.net.random(f"{agent.name} {agent.boots}")
        self.core = agent.core_type(
            Profile(
                agent.identity,
                agent.did,
                dialect=Dialect.AGT4 if agent.kind is Kind.LEGACY else Dialect.AGT5,
                extensions=not agent.forgetful,
                plaintext_peers=agent.trusts,
                ask_before_accepting=agent.kind is Kind.ASKING,
                ack_when_saved=not agent.forgetful,
            ),
            agent.disk.boot(),
            SeededEntropy(f"{self.net.seed}/{agent.name}/{agent.boots}"),
            agent.limits,
            Timeouts(),
            PREKEYS,
        )
        if self.ledger.lanes:
            self.core.add_lane(lambda sender, payload: lane_of(str(payload)))
        self.socket: Socket | None = None
        self.skew_measured = 0.0
        self._backoff = Backoff()
        self._ceiling = self._backoff.first
        self._connected_at = 0.0
        self._registered = False
        self._epoch: int | None = None
        self._keys_moved = False
        self._wake_at = float("inf")
        self._app_due = False

    def start(self) -> None:
        """Register, publish, connect; and hand over what an earlier process left."""
        self._register()
        self.after(HOUSEKEEPING, self._housekeeping)
        self._step()

    def now(self) -> Instant:
        """The machine's time, corrected by what the registry's answers tell."""
        wrong = SKEW_WORTH_CORRECTING <= abs(self.skew_measured) <= LARGEST_CORRECTION
        return self.net.instant(self.agent.skew + (self.skew_measured if wrong else 0.0))

    # --- what the application does -----------------------------------------------------------------------------------

    def send(self, peer: Agent, payload: str) -> bool:
        """Queue a message. Whether it was taken."""
        try:
            message = self.core.send(peer.did, payload, self.now())
        except QueueFull:
            return False
        self.ledger.offered(self.agent.did, peer.did, message, payload)
        self._step()
        return True

    def close_session(self, peer: Agent) -> None:
        """Forget the sessions with a peer."""
        self.ledger.excused |= {(self.agent.did, peer.did), (peer.did, self.agent.did)}
        self.core.close_session(peer.did)
        self._step()

    def _application(self) -> None:
        self._app_due = False
        arrived = self.core.messages(1) if self.ledger.lanes else []
        if not self.ledger.lanes or self.net.now % 40 < 20:
            arrived += self.core.messages()
        elif 0 in self.core.inbox.lanes_ready():
            self.after(5.0, self._application)  # who takes from this lane is away
        if not arrived:
            return
        self._step()  # that a message was handed over is saved before it is
        for message in arrived:
            self.point("before handing over")
            self._hand_over(message)

    def _hand_over(self, message: Received) -> None:
        self.ledger.handed(self.agent, message)
        self.after(self.chance.choice((0.0, 0.05, 2.0)), self._handled, message)

    def _handled(self, message: Received) -> None:
        if self.agent.failures > 0:
            self.agent.failures -= 1
            self.net.faults["application failed"] += 1
            self.core.return_unconfirmed(message.sender, message.id)
            self._step()
            return
        self.point("before confirming")
        if self.core.confirm(message.sender, message.id):
            if self.core.overflowed and self.core.inbox_has_room and self.socket is not None:
                self.socket.cut()  # the relay offers what was passed over on the next connection
            self._step()
            self.ledger.confirmed(self.agent.did, message.sender, message.id)

    # --- the step ----------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Save what the core changed, then send what it wrote, then tell what happened."""
        changes, writes, events = self.core.changes(), self.core.writes(), self.core.events()
        self.point("before saving")
        self._save_and_send(changes, writes, events)
        for did in self.core.fetches():
            self._fetch(did)
        if not self._app_due:
            self._app_due = True
            self.after(self.chance.choice((0.0, 0.1)), self._application)
        self._plan_wake_up()

    def _save_and_send(self, changes: Changes, writes: list[bytes], events: list[Event]) -> None:
        self._save(changes, events)
        self.point("saved, not sent")
        self._send(writes)
        if any(isinstance(event, Disconnected) and not event.retrying for event in events):
            self.net.faults["relay refused"] += 1
        for event in events:
            if isinstance(event, KnockReceived) and self.agent.kind is Kind.ASKING:
                self._consider(event)

    def _consider(self, knock: KnockReceived) -> None:
        """Somebody is asked whether the peer may talk to us. About one peer the answer is always the same."""
        opinion = self.net.random(f"{self.agent.name} about {knock.peer}").choice(("yes", "yes", "no", "nothing"))
        if opinion != "yes":
            self.ledger.unwanted.add((knock.peer, self.agent.did))
        if opinion != "nothing":
            delay = self.chance.choice((0.0, 1.0, 10.0, 29.0))
            self.after(delay, self._answer, knock, opinion == "yes")

    def _answer(self, knock: KnockReceived, accept: bool) -> None:
        self.net.faults["policy accepted" if accept else "policy refused"] += 1
        self.core.answer_knock(knock.peer, knock.knock_id, accept=accept, now=self.now())
        self._step()

    def _save(self, changes: Changes, events: list[Event]) -> None:
        if changes:
            try:
                self.agent.disk.save(changes)
            except StoreError:
                self.net.faults["disk full"] += 1
                raise Killed from None  # the core is ahead of the disk: nobody may go on with it
            self._keys_moved = self._keys_moved or bool(changes.peers)
        self.ledger.saved(self.agent, self.core, changes, events)

    def _send(self, writes: list[bytes]) -> None:
        if not writes or self.socket is None:
            return
        for raw in writes:
            self.ledger.wrote(self.agent, raw)
            self.socket.carry("up", raw)
            self.point("sending")
        self.core.sent()
        self.point("sent")

    def _plan_wake_up(self) -> None:
        deadline = self.core.next_deadline() - 1_000.0
        if deadline < self._wake_at:
            self._wake_at = deadline
            self.after(deadline - self.net.now, self._wake_up)

    def _wake_up(self) -> None:
        self._wake_at = float("inf")
        self.core.tick(self.now())
        self._step()

    # --- the connection ----------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Open a socket to the relay."""
        if self.socket is not None:
            return
        relay = self.agent.relay.process
        if relay is None:
            self._reconnect_later()
            return
        socket = self.net.socket(self.name)
        socket.client = self
        challenge = relay.accept(socket)
        self.socket = socket
        self._connected_at = self.net.now
        self.after(self.chance.uniform(0, 0.2), self._opened, socket, challenge)

    def _opened(self, socket: Socket, challenge: str) -> None:
        if socket is not self.socket:
            return
        self.core.opened(self.now(), challenge)
        self._step()
        self.after(Timeouts().proof, self._prove_in_time, socket)

    def _prove_in_time(self, socket: Socket) -> None:
        if socket is self.socket and self.core.link is not Link.UP:
            socket.cut()

    def hear(self, socket: Socket, raw: bytes) -> None:
        """A frame has come."""
        if socket is self.socket:
            self.core.receive(raw, self.now())
            self.point("received")
            self._step()

    def disconnected(self, socket: Socket, code: int, reason: str) -> None:
        """The socket's end has been noticed."""
        if socket is not self.socket:
            return
        self.socket = None
        self.core.closed(code, reason)
        if self.net.now - self._connected_at >= self._backoff.stable_after:
            self._ceiling = self._backoff.first
        self._step()
        self._reconnect_later()

    def _reconnect_later(self) -> None:
        self.after(self.chance.uniform(0, self._ceiling), self.connect)
        self._ceiling = min(self._ceiling * 2, self._backoff.last)

    def die(self) -> None:
        """The socket breaks; the disk stays."""
        if not self.alive:
            return
        super().die()
        if self.socket is not None:
            self.socket.cut(written="up")
        self.agent.died()

    # --- the registry ------------------------------------------------------------------------------------------------

    def _call(
        self,
        prepare: Callable[[str], wire.Request],
        then: Callable[[wire.Answer], None],
        failed: Callable[[MeshError], None],
        attempts: int = 3,
    ) -> None:
        moment = timestamp(self.now().utc)
        request = prepare(moment)
        signer = wire.Signer.of(self.agent.identity, self.agent.did)
        headers = wire.headers(request, signer, moment, bound=not self.agent.forgetful)

        def answered(answer: wire.Answer | None, theirs: float) -> None:
            if answer is not None:
                self.skew_measured = theirs - self.net.instant(self.agent.skew).utc
            if answer is None or answer.status >= 500 or (answer.status == 401 and attempts > 1):
                if attempts > 1:
                    self._call(prepare, then, failed, attempts - 1)
                else:
                    failed(TransportError("the registry gives no answer"))
                return
            try:
                then(answer)
            except (ServiceError, PeerError, MalformedFrame) as error:
                failed(error)

        self.agent.registry.ask(self, request, headers, answered)

    def _register(self) -> None:
        """Count this start, register, publish: what :meth:`meshlib.MeshClient` does before it connects."""

        def known(answer: wire.Answer) -> None:
            self._count_start(published_epoch(wire.read_agent(answer, self.agent.did).metadata))

        def failed(error: MeshError) -> None:
            if isinstance(error, AgentNotFound):
                self._count_start(0)
            else:
                self.after(TRY_AGAIN, self._register)

        if self._epoch is not None or self.agent.forgetful or self.agent.kind is Kind.LEGACY:
            self._announce()
        else:
            self._call(lambda _: wire.get_agent(self.agent.did), known, failed)

    def _count_start(self, published: int) -> None:
        try:
            self._epoch = self.core.count_epoch(published)
        except StoreError:
            # Whoever runs it reads why, finds no newer store, and starts with an empty one.
            self.net.faults["old store refused"] += 1
            self.agent.lose_disk()
            raise Killed from None
        self.ledger.opened(self.agent)
        self._step()
        self._announce()

    def _metadata(self) -> dict[str, object]:
        return {} if self._epoch is None else {EPOCH_KEY: str(self._epoch)}

    def _announce(self) -> None:
        identity, did, metadata = self.agent.identity, self.agent.did, self._metadata()

        def registered(answer: wire.Answer) -> None:
            legacy = self.agent.kind is Kind.LEGACY
            registration = wire.read_registration(answer, did, key=None if legacy else identity.public_key)
            if registration.created or not metadata:
                self._publish(at_start=True)
            else:
                self._call(lambda _: wire.update(did, None, metadata), updated, failed)

        def updated(answer: wire.Answer) -> None:
            wire.read_agent(answer, did)
            self._publish(at_start=True)

        def failed(error: MeshError) -> None:
            self.after(TRY_AGAIN, self._register)

        if self.agent.kind is Kind.LEGACY:
            self._call(lambda _: wire.register_legacy(did, identity.agreement_key.public), registered, failed)
        else:
            self._call(lambda now: wire.register(identity, now, metadata=metadata), registered, failed)

    def _count_on(self, published: int) -> None:
        """Count on if keys were used since."""
        if self._epoch is None or not self._keys_moved:
            return
        self._keys_moved = False
        self._epoch = self.core.count_epoch(published)
        self._step()
        self._call(lambda _: wire.update(self.agent.did, None, self._metadata()), lambda _: None, lambda _: None)

    def _publish(self, *, at_start: bool = False) -> None:
        def counted(answer: wire.Answer) -> None:
            agent = wire.read_agent(answer, self.agent.did)
            left = agent.one_time_keys_left
            if not at_start:
                self._count_on(published_epoch(agent.metadata))
            low = left is not None and left < PREKEYS.top_up_below
            if not at_start and not self.core.keyring.refresh(self.now()) and not low:
                return
            # What the registry has although this store never published is of a store that is gone.
            anew = not self.core.keyring.signed
            upload = self.core.replenish(0 if anew else left or 0, self.now())
            self._step()  # a private key is saved before its public half leaves
            self.point("prekeys saved, not published")
            public = wire.PrekeyUpload.of(self.agent.identity, upload.signed, upload.one_time)
            mode: wire.PrekeyMode = "replace" if anew else "merge"
            self._call(lambda _: wire.upload_prekeys(self.agent.did, public, mode), published, failed)

        def published(answer: wire.Answer) -> None:
            wire.read_upload(answer)
            if at_start:
                self._registered = True
                self.connect()

        def failed(error: MeshError) -> None:
            if at_start:
                self.after(TRY_AGAIN, self._register)
            elif isinstance(error, AgentNotFound):
                self._register()

        self._call(lambda _: wire.get_agent(self.agent.did), counted, failed)

    def _housekeeping(self) -> None:
        if self._registered:
            self._publish()
        self.after(HOUSEKEEPING, self._housekeeping)

    def _fetch(self, did: Did) -> None:
        registered = False
        hint: Dialect | None = None

        def known(answer: wire.Answer) -> None:
            nonlocal registered, hint
            hint = Dialect.AGT4 if wire.read_agent(answer, did).registration == "legacy" else None
            registered = True
            self._call(lambda _: wire.fetch_prekeys(did), fetched, failed)

        def fetched(answer: wire.Answer) -> None:
            self.core.bundle(did, wire.read_bundle(answer, did).checked(did), self.now(), hint)
            self._step()

        def failed(error: MeshError) -> None:
            absent = isinstance(error, AgentNotFound)
            refused = isinstance(error, RegistryRefused) and 400 <= error.status < 500 and error.status != 429
            final = not registered if absent else refused or isinstance(error, PeerError)
            self.core.no_bundle(did, error, self.now(), final=final)
            self._step()

        self._call(lambda _: wire.get_agent(did), known, failed)
