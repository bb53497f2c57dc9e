"""Agents: the production client core behind a shell that takes the same steps as :class:`meshlib.MeshClient`.

Between any two of these steps the process can be killed. What its disk holds then is all that the next one knows.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshlib.client.core import ClientCore, Link, Profile
from meshlib.client.events import Disconnected, Event, Received
from meshlib.client.registry import LARGEST_CORRECTION, SKEW_WORTH_CORRECTING
from meshlib.clock import Instant
from meshlib.config import Backoff, Limits, Prekeys, Timeouts
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
from meshlib.identity import Did, Identity
from meshlib.store.memory import MemoryStore
from meshlib.store.protocol import Changes, SavedState
from meshlib.testing import SeededEntropy
from meshlib.wire import registry as wire
from meshlib.wire.encoding import timestamp
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
    process: "ClientProcess | None" = None

    def __post_init__(self) -> None:
        self.identity = Identity.generate(SeededEntropy(f"{self.net.seed}/{self.name}"))
        self.did = self.identity.did

    def start(self) -> None:
        """Start a process, if none runs."""
        if self.process is None:
            self.boots += 1
            self.process = self.shell_type(self)
            self.net.run_in(self.process, self.process.start)

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
            Profile(agent.identity, agent.did, plaintext_peers=agent.trusts, ack_when_saved=True),
            agent.disk.boot(),
            SeededEntropy(f"{self.net.seed}/{agent.name}/{agent.boots}"),
            agent.limits,
            Timeouts(),
            PREKEYS,
        )
        self.socket: Socket | None = None
        self.skew_measured = 0.0
        self._backoff = Backoff()
        self._ceiling = self._backoff.first
        self._connected_at = 0.0
        self._registered = False
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
        arrived = self.core.messages()
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

    def _save(self, changes: Changes, events: list[Event]) -> None:
        if changes:
            try:
                self.agent.disk.save(changes)
            except StoreError:
                self.net.faults["disk full"] += 1
                raise Killed from None  # the core is ahead of the disk: nobody may go on with it
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
        headers = wire.headers(request, wire.Signer.of(self.agent.identity), moment, bound=True)

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
        def registered(answer: wire.Answer) -> None:
            wire.read_registration(answer, self.agent.did, key=self.agent.identity.public_key)
            self._publish(at_start=True)

        def again(error: MeshError) -> None:
            self.after(TRY_AGAIN, self._register)

        self._call(lambda now: wire.register(self.agent.identity, now), registered, again)

    def _publish(self, *, at_start: bool = False) -> None:
        def counted(answer: wire.Answer) -> None:
            left = wire.read_agent(answer, self.agent.did).one_time_keys_left
            low = left is not None and left < PREKEYS.top_up_below
            if not at_start and not self.core.keyring.refresh(self.now()) and not low:
                return
            upload = self.core.replenish(left or 0, self.now())
            self._step()  # a private key is saved before its public half leaves
            self.point("prekeys saved, not published")
            public = wire.PrekeyUpload.of(self.agent.identity, upload.signed, upload.one_time)
            self._call(lambda _: wire.upload_prekeys(self.agent.did, public, "merge"), published, failed)

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

        def known(answer: wire.Answer) -> None:
            nonlocal registered
            wire.read_agent(answer, did)
            registered = True
            self._call(lambda _: wire.fetch_prekeys(did), fetched, failed)

        def fetched(answer: wire.Answer) -> None:
            self.core.bundle(did, wire.read_bundle(answer, did).checked(did), self.now())
            self._step()

        def failed(error: MeshError) -> None:
            absent = isinstance(error, AgentNotFound)
            refused = isinstance(error, RegistryRefused) and 400 <= error.status < 500 and error.status != 429
            final = not registered if absent else refused or isinstance(error, PeerError)
            self.core.no_bundle(did, error, self.now(), final=final)
            self._step()

        self._call(lambda _: wire.get_agent(did), known, failed)
