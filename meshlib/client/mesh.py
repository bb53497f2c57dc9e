"""MeshClient: the shell around the core, native on asyncio and on trio.

Owns tasks, sockets and the clock. Every step follows one order: the core decides, the store saves, then bytes leave
and facts are told. Leaves every decision about frames to :mod:`meshlib.client.core`.
"""

import logging
import os
import random
import ssl
import time
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import AsyncExitStack
from functools import partial
from inspect import isawaitable
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup

from meshlib.client import logs
from meshlib.client.bell import Bell
from meshlib.client.core import ClientCore, Link, Profile
from meshlib.client.counters import Counters
from meshlib.client.events import (
    Connected,
    DeliveryChanged,
    DeliveryState,
    Disconnected,
    Event,
    KnockReceived,
    Received,
)
from meshlib.client.handles import FINAL, Agent, Events, Inbox, Message, Receipt, progress_of
from meshlib.client.names import Names
from meshlib.client.registration import Registration
from meshlib.client.registry import LARGEST_CORRECTION, SKEW_WORTH_CORRECTING, RegistryClient, RegistryOptions
from meshlib.client.requests import Answer, Gathering, OnProgress, Requests
from meshlib.client.routes import Route, Routes
from meshlib.client.sightings import look_up
from meshlib.client.stats import ClientStats, Sighting
from meshlib.client.transport import Closed, WebSocket
from meshlib.client.verbs import PeerSummary
from meshlib.clock import Instant
from meshlib.config import ClientConfig, accept_everyone
from meshlib.crypto.x3dh import Dialect
from meshlib.errors import (
    AgentNotFound,
    InvalidValue,
    MeshError,
    NotConnected,
    PeerError,
    RegistryRefused,
    RelayRefused,
    ServiceError,
    StoreError,
    TransportError,
    UsageError,
)
from meshlib.files.folder import Folder
from meshlib.files.receipts import FileReceipt, OnTransfer
from meshlib.files.service import Files
from meshlib.identity import Did, Identity, parse_did
from meshlib.logs import LogEvent
from meshlib.store import open_store
from meshlib.store.protocol import Changes, Store
from meshlib.wire.encoding import MessageId, parse_message_id, timestamp
from meshlib.wire.encoding import message_id as message_id_of
from meshlib.wire.registry import Signer

log = logging.getLogger("meshlib.client")

BATCH = 256 * 1024
"""Bytes per write to the relay, so that a slow link shows progress between them."""
SLOWEST_LINK = 8 * 1024
"""Bytes per second below which a link counts as stuck."""
CONFIRMED_AT_ONCE = 32
"""Messages an inbox hands over before everybody else has a turn: what they cause is then saved and sent together, and a
loop that never waits keeps nobody from working for long."""
CONFIRMED_WITHIN = 0.005
"""Seconds after which a confirmation that nobody waits for is saved; until then it shares the write of what comes next.
As long as a commit takes on a disk that is not fast: who dies meanwhile is handed over no more than that would cost."""
QUESTIONS = 100
"""Knocks the policy may be pondering over at the same time; the oldest is given up first."""


class MeshClient:
    """An agent on the mesh.

    Use it as an async context manager, on asyncio or on trio::

        async with MeshClient(ClientConfig(name="alice")) as client:
            await client.send("bob", "hello")
            async for message in client.inbox():
                print(message.sender, message.payload)

    Entering registers, publishes prekeys and connects; it raises if that cannot work. After that the client
    reconnects by itself and loses nothing that :meth:`send` took.

    Args:
        config: what to do and where.
        store: a store to use instead of the one ``config.store`` names.
    """

    def __init__(self, config: ClientConfig, *, store: Store | None = None) -> None:
        self.config = config
        self._given_store = store
        self._store: Store | None = None
        self._core: ClientCore | None = None
        self._registry: RegistryClient | None = None
        self._registration: Registration | None = None
        self._socket: WebSocket | None = None
        self._tasks: TaskGroup | None = None
        self._stack = AsyncExitStack()
        self._step_wanted = False
        self._work = Bell()
        self._saving = self._next_step = _Step()
        self._due_at = 0.0
        self._due_earlier = Bell()
        self._pondering: OrderedDict[object, anyio.CancelScope] = OrderedDict()
        self._entered = False
        self._left = False
        self._link_changed = Bell()
        self._room = Bell()
        self._arrived: defaultdict[int, Bell] = defaultdict(Bell)
        """By lane of the inbox."""
        self._arrivals: deque[Received] = deque()
        """What was handed over, on its way to whoever receives."""
        self._arrivals_step = self._saving
        self._receivers_waiting = 0
        self._confirmed = 0
        self._confirmed_unsaved = False
        self._confirmed_bell = Bell()
        self._pending: dict[tuple[Did, MessageId], Message] = {}
        self._routes = Routes()
        self._requests = Requests(config.name or "", self.send, self.take_back, lambda: timestamp(self._now().utc))
        self._files: Files | None = None
        self._listeners: weakref.WeakSet[Events] = weakref.WeakSet()
        self._receipts: weakref.WeakValueDictionary[MessageId, Receipt] = weakref.WeakValueDictionary()
        self._names = Names(self.discover)
        self._wanted = True
        self._refused: RelayRefused | None = None
        self._trouble: MeshError | None = None
        self._broken: MeshError | None = None
        self._counters = Counters(self._now)

    # --- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._entered:
            raise UsageError("a client is entered once: make a new MeshClient to go on")
        self._entered = True
        try:
            await self._enter()
        except BaseException as error:
            await self._stack.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def _enter(self) -> None:
        config = self.config
        store = self._given_store
        if store is None:
            store = await anyio.to_thread.run_sync(open_store, config.store, config.passphrase)
        self._store = store
        self._stack.callback(store.close)
        saved = await anyio.to_thread.run_sync(store.load)
        identity = config.identity or (Identity(saved.signing_key) if saved.signing_key else None)
        if saved.signing_key is not None and config.identity not in (None, Identity(saved.signing_key)):
            raise InvalidValue("the store belongs to another identity than the one given: use another folder")
        if identity is None:
            identity = Identity.generate(os.urandom)
        if saved.signing_key is None:
            await self._save(Changes(signing_key=identity.signing_key))
        did = parse_did(config.did) if config.did else identity.did
        profile = Profile(
            identity=identity,
            did=did,
            dialect=config.dialect,
            extensions=config.extensions,
            plaintext_peers=config.plaintext_peers,
            peer_dialects=config.peer_dialects,
            token=config.token,
            heartbeat=config.heartbeat,
            ask_before_accepting=config.knock_policy is not accept_everyone,
            ack_when_saved=store.durable,
        )
        self._core = ClientCore(profile, saved, os.urandom, config.limits, config.timeouts, config.prekeys)
        options = RegistryOptions(
            timeout=config.timeouts.registry,
            bound_requests=config.extensions,
            tls=config.tls or (ssl.create_default_context() if config.registry_url.startswith("https") else None),
            proxy=config.proxy,
        )
        signer = Signer.of(identity, did)
        registry = RegistryClient(config.registry_url, signer=signer, options=options)
        self._registry = await self._stack.enter_async_context(registry)
        self._tasks = await anyio.create_task_group().__aenter__()
        self._stack.push_async_exit(self._leave)
        self._spawn(self._keep_saved)
        self._spawn(self._keep_confirmed)
        self.add_route(self._requests)
        files = await self._open_files()
        if config.register:
            self._registration = self._registration_of(self._core, self._registry, durable=store.durable)
            await self._registration.begin()
            self._spawn(self._registration.keep)
        self._spawn(self._keep_connected)
        self._spawn(self._keep_time)
        await self.connect()
        await files.start()

    def _registration_of(self, core: ClientCore, registry: RegistryClient, *, durable: bool) -> Registration:
        return Registration(
            self.config,
            core,
            registry,
            self._counters,
            durable=durable,
            save=self._step,
            tell=self._tell,
            give_up=self._break,
            now=self._now,
        )

    async def _open_files(self) -> Files:
        config, core = self.config, self._open_core()
        folder = None
        if config.incoming is not None:
            path = await anyio.Path(config.incoming).expanduser()
            folder = await anyio.to_thread.run_sync(Folder, Path(path), config.incoming_quota, config.incoming_files)
        durable = config.store is not None and self._given_store is None
        files = self._files = Files(
            name=config.name or "",
            did=core.profile.did,
            identity=core.profile.identity,
            store=Path(await anyio.Path(config.store).expanduser()) if durable and config.store is not None else None,
            folder=folder,
            policy=config.files_from,
            post=self.send,
            answer=self._answer,
            notify=self._leave_notice,
            tell=self._tell,
            spawn=self._spawn,
            stamp=lambda: timestamp(self._now().utc),
            payload=config.limits.payload,
            has_receipts=lambda: not self.connected or "receipts" in self.features,
        )
        self._stack.callback(files.close)
        await files.open()
        self.add_route(files)
        return files

    async def _leave_notice(self, sender: Did, key: str, payload: object) -> None:
        self._open_core().leave_notice(sender, MessageId(key), payload)
        await self._step()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, trace)

    async def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Say goodbye and end the tasks. What the caller's block raised stays what it is, in no exception group."""
        tasks = self._tasks
        assert tasks is not None
        cancelled = isinstance(error, anyio.get_cancelled_exc_class())
        try:
            with anyio.move_on_after(self.config.timeouts.close, shield=True):
                await self.disconnect()
                await self._step()  # what an inbox confirmed last may not be saved yet
                if self._registration is not None:
                    await self._registration.end()
        except MeshError as failure:
            log.warning(LogEvent("goodbye_failed", detail=failure))
        finally:
            self._left = True
            tasks.cancel_scope.cancel()
            for listener in list(self._listeners):
                listener.end()
            self._wake_all()
            swallowed = await tasks.__aexit__(*((kind, error, trace) if cancelled else (None, None, None)))
        return swallowed if cancelled else None

    async def connect(self) -> None:
        """Connect, and stay connected. Waits until the relay takes our frames.

        Raises:
            RelayRefused: the relay said no in a way that a retry does not change.
            TransportError: no connection within ``timeouts.connect``; trying goes on in the background.
        """
        core = self._open_core()
        self._wanted = True
        self._refused = None
        self._wake_all()
        with anyio.move_on_after(self.config.timeouts.connect + self.config.timeouts.proof):
            while core.link is not Link.UP:
                self._check_able()
                await self._link_changed.wait()
            return
        raise TransportError(
            f"no connection to {self.config.relay_url} within {self.config.timeouts.connect:g} s"
            + (f": {self._trouble}" if self._trouble else ": start the relay, or check relay_url")
        )

    async def disconnect(self) -> None:
        """Say goodbye to the relay and stay away until :meth:`connect`. Messages wait in the outbox meanwhile."""
        core = self._open_core()
        self._wanted = False
        socket = self._socket
        if socket is not None:
            core.goodbye()
            await self._step()
            with anyio.move_on_after(self.config.timeouts.close) as patience:
                await socket.say_goodbye()
                while self._socket is socket:
                    await self._link_changed.wait()
            if patience.cancelled_caught:
                await socket.abort()
        self._link_changed.ring()

    @property
    def did(self) -> Did:
        """Our DID."""
        return self._open_core().profile.did

    @property
    def connected(self) -> bool:
        """Whether the relay takes our frames right now."""
        return self._core is not None and self._core.link is Link.UP

    @property
    def features(self) -> frozenset[str]:
        """Extensions the relay and we both know."""
        return self._open_core().features

    # --- sending -----------------------------------------------------------------------------------------------------

    async def send(
        self,
        peer: str,
        payload: object,
        *,
        wait: DeliveryState | str | None = None,
        message_id: str | None = None,
    ) -> Receipt:
        """Send a message, end to end encrypted.

        Returns once the message is in the outbox (on disk, if the store is); it leaves as soon as possible.

        Args:
            peer: display name or DID.
            payload: str, bytes or any JSON value.
            wait: also wait until it is ``"relayed"``, ``"stored"`` or ``"delivered"``.
            message_id: an id of your own, new for every message. A program that writes it down first can repeat the
                call after a crash, whether or not the message was taken before: the recipient gets it once.
        Raises:
            AgentNotFound, AmbiguousName: the name leads nowhere, or to several agents.
            InvalidValue: the payload has no JSON form or is too large, or the id is impossible or another message's.
            QueueFull: the outbox has reached its bound.
            KnockRefused: with ``wait``, the peer does not want to talk.
        """
        if wait is not None:
            wait = progress_of(wait)
        did = parse_did(peer) if peer.startswith("did:") else await self.resolve(peer)
        chosen = parse_message_id(message_id) if message_id is not None else None
        receipt = await self._post(did, payload, chosen)
        if wait is not None:
            await receipt.wait(wait)
        return receipt

    async def _answer(self, peer: str, payload: object) -> Receipt:
        return await self._post(await self.resolve(peer), payload, answer=True)

    async def _post(
        self, did: Did, payload: object, chosen: MessageId | None = None, *, answer: bool = False
    ) -> Receipt:
        core = self._open_core()
        self._check_able()
        message = core.send(did, payload, self._now(), chosen, answer=answer)
        receipt = found = None
        if chosen is not None:  # only then may it be known from before
            receipt, found = self._receipts.get(message), core.delivery(message)
        if receipt is None or receipt.state in FINAL:
            state = DeliveryState.QUEUED if found is None else found.state
            receipt = self._receipts[message] = Receipt(message, did, state)
        logs.queued(message, did)
        await self._until_saved(self._ask_step())
        return receipt

    async def take_back(self, message: str) -> bool:
        """Drop a message that has not left yet. Returns whether it was still here."""
        dropped = self._open_core().cancel(MessageId(message))
        if dropped:
            receipt = self._receipts.get(MessageId(message))
            if receipt is not None:
                receipt.give_up(UsageError("the message was taken back before it left"))
            await self._step()
        return dropped

    def receipt(self, message: str) -> Receipt | None:
        """The receipt of a message sent earlier, by this process or one before it; ``None`` if it is not known.

        The ends of the last 10,000 messages are remembered.
        """
        known = self._receipts.get(MessageId(message))
        if known is not None:
            return known
        found = self._open_core().delivery(MessageId(message))
        if found is None:
            return None
        receipt = self._receipts[found.id] = Receipt(found.id, found.peer, found.state)
        return receipt

    def undelivered(self) -> list[Receipt]:
        """Receipts of everything that is not delivered yet, in the order it was sent, over restarts."""
        receipts = [self.receipt(outgoing.id) for outgoing in self._open_core().outbox.all()]
        return [receipt for receipt in receipts if receipt is not None]

    async def request(
        self,
        peer: str,
        content: str,
        *,
        timeout: float = 1500.0,  # noqa: ASYNC109 - the agent is told how long we wait
        hops: int = 0,
        on_progress: OnProgress | None = None,
    ) -> Answer:
        """Have a peer do something, and wait for its answer.

        The task is a ``task_request`` envelope; whoever runs a responder answers it. Cancelled or out of time, it is
        called off at the agent as well.

        Args:
            peer: display name or DID.
            content: what is wanted, in words.
            timeout: seconds to wait.
            hops: how many agents have passed work on before us; responders refuse beyond a bound.
            on_progress: called whenever the task has come further.
        Raises:
            TaskFailed: the agent said that there will be no answer, and why.
            TaskUnfinished: no answer in time; its ``state`` says how far the task had come.
            KnockRefused, AgentNotFound, AmbiguousName, QueueFull, InvalidValue: as with :meth:`send`.
        """
        did = await self.resolve(peer)
        return await self._requests.ask(did, content, message_id_of(os.urandom), timeout, hops, on_progress)

    def gather(self, contents: Mapping[str, str], *, timeout: float = 1500.0, hops: int = 0) -> Gathering:
        """Have several peers do something at the same time.

        Args:
            contents: what is wanted, by display name or DID.
            timeout: seconds after which those who have not answered are left out.
        Returns:
            An async iterator of one :class:`Result` per peer, in the order in which they answer.
        """
        self._check_able()
        gathering = Gathering(contents)
        for peer, content in contents.items():
            ask = partial(self.request, peer, content, timeout=timeout, hops=hops)
            self._spawn(gathering.follow, peer, ask)
        return gathering

    async def send_file(
        self, peer: str, path: Path | str, *, description: str = "", on_progress: OnTransfer | None = None
    ) -> FileReceipt:
        """Send a file. Returns once that is noted (on disk, if the store is); it goes on over restarts.

        The file is read when its parts are sent: leave it as it is until then. ``await receipt.wait()`` waits for it.

        Args:
            peer: display name or DID.
            path: a regular file, of any size. Peers in the field take up to some 29 MiB.
            description: what it is, in words.
            on_progress: called with the receipt whenever more of the file has moved.
        Raises:
            AgentNotFound, AmbiguousName: the name leads nowhere, or to several agents.
            InvalidValue: the file cannot be read, or is being written to.
            QueueFull: too many files are on their way.
            StoreError: it cannot be noted.
        """
        did = await self.resolve(peer)
        self._check_able()
        if did == self.did:
            raise InvalidValue("a file for oneself needs no mesh")
        return await self._open_files_or_fail().send(did, Path(path), description, on_progress)

    def transfers(self) -> list[FileReceipt]:
        """Files on their way, to peers and from them, also those a process before this one began."""
        return self._open_files_or_fail().receipts()

    async def peers(self) -> list[PeerSummary]:
        """Everybody we have talked to, the last first."""
        core = self._open_core()
        names = self._names.by_did()
        return [
            PeerSummary(peer.did, names.get(peer.did), peer.verified, len(core.outbox.of(peer.did)))
            for peer in core.peers()
        ]

    async def stats(self) -> ClientStats:
        """This client's numbers: what has passed since it was entered, and what waits right now."""
        return self._counters.stats(self._open_core())

    async def trace(self, message: str) -> tuple[Sighting, ...]:
        """Where a message stands, by its id: one of ours or of a peer. Nothing, if it is not known any more.

        Several are found when several peers have used the same id. The ends of the last 10,000 sent messages are
        remembered, and the ids of the last 100,000 received ones.
        """
        return look_up(self._open_core(), MessageId(message))

    async def resolve(self, peer: str) -> Did:
        """The DID of a display name; a DID is returned as it is.

        Raises:
            AgentNotFound, AmbiguousName: no agent, or more than one, has that name.
        """
        return await self._names.resolve(peer, self.did)

    async def discover(self, capability: str, limit: int = 50) -> list[Agent]:
        """Agents that publish a capability (a display name is one), the freshest first."""
        results = await self._open_registry().discover(capability, limit)
        return [Agent(parse_did(one.did), one.capabilities, one.online, one.last_seen) for one in results]

    # --- receiving ---------------------------------------------------------------------------------------------------

    def inbox(self) -> "Inbox":
        """Messages as they come, for ``async for``. Going on to the next one confirms the last; so does ``ack()``.

        A message whose loop body raised, or whose process died, is handed over again, marked ``redelivered``. Going on
        does not wait for the disk, so that many confirmations share one write: a process that dies within the
        milliseconds this takes is handed over those messages again as well. ``await message.ack()`` waits.
        A new inbox takes over from any earlier one.
        """
        core = self._open_core()
        for sender, message_id in list(self._pending):
            core.return_unconfirmed(sender, message_id)
        self._pending.clear()
        return Inbox(self.receive, self._confirm_soon)

    async def receive(self, senders: Collection[str] | None = None) -> Message:
        """The next message. Confirm it with :meth:`Message.ack` once it has been dealt with.

        Args:
            senders: names or DIDs; take only a message of one of them. The others go on waiting.
        Raises:
            AgentNotFound, AmbiguousName: a name leads nowhere, or to several agents.
            MeshError: no message waits, and none can come any more.
        """
        self._open_core()
        wanted = None if senders is None else {await self.resolve(sender) for sender in senders}
        while True:
            if (wanted is not None or not self._arrivals) and self._take_arrivals(self._next_step):
                self._ask_step()
            found = self._first_arrival(wanted)
            if found is None:
                self._check_able()
                self._receivers_waiting += 1
                try:
                    await self._arrived[0].wait()
                finally:
                    self._receivers_waiting -= 1
            elif not self._arrivals_step.saved:
                await self._until_saved(self._arrivals_step)  # that a message was handed over is saved before it is
            else:
                self._arrivals.remove(found)
                message = Message(found, self._confirm)
                self._pending[message.sender, message.id] = message
                return message

    def _take_arrivals(self, step: "_Step") -> bool:
        """Take what waits for the application, as part of ``step``. Returns whether there was any."""
        batch = self._open_core().messages()
        if batch:
            self._arrivals.extend(batch)
            self._arrivals_step = step
        return bool(batch)

    def give_back(self, message: Message) -> None:
        """Leave a message that is not confirmed to whoever receives next; it comes first, marked ``redelivered``."""
        if self._pending.pop((message.sender, message.id), None) is not None:
            again = Received(message.sender, message.id, message.payload, message.encrypted, redelivered=True)
            self._arrivals.appendleft(again)
            self._arrived[0].ring()

    def _first_arrival(self, wanted: set[Did] | None) -> Received | None:
        if wanted is None:
            return self._arrivals[0] if self._arrivals else None
        return next((one for one in self._arrivals if one.sender in wanted), None)

    def add_route(self, route: Route) -> None:
        """Let a route take some of the messages before the application sees them, those that wait already included.

        Routes added first are asked first. Each works through its messages in a task of the client, one by one.
        """
        core = self._open_core()
        self._routes.add(route)
        lane = core.add_lane(self._routes.lane_of)
        self._spawn(self._serve, route, lane)

    async def _serve(self, route: Route, lane: int) -> None:
        core = self._open_core()
        while True:
            batch = core.messages(lane)
            if not batch:
                await self._arrived[lane].wait()  # while the relay refuses us, too: connect() may be called again
                continue
            await self._step()
            for received in batch:
                message = Message(received, self._confirm)
                try:
                    await route.handle(message)
                except MeshError as error:
                    log.warning(
                        LogEvent("message_waits_for_next_start", id=message.id, peer=message.sender, detail=error)
                    )
                else:
                    # Not waiting until it is saved: a process that dies before has the route handle it again, as if it
                    # had died a moment earlier; and many of them share one write to the disk.
                    if self._take_off(message):
                        await self._ask_for_the_rest()

    async def _confirm(self, message: Message) -> None:
        step = self._ask_step()
        if self._take_off(message):
            await self._ask_for_the_rest()
        await self._until_saved(step)

    async def _confirm_soon(self, message: Message) -> None:
        if self._take_off(message):
            await self._ask_for_the_rest()
        self._confirmed += 1
        if self._confirmed % CONFIRMED_AT_ONCE == 0:
            await anyio.lowlevel.checkpoint()

    def _take_off(self, message: Message) -> bool:
        """The application is done with a message. Returns whether that has made room for what was passed over."""
        self._pending.pop((message.sender, message.id), None)
        core = self._open_core()
        if not core.confirm(message.sender, message.id):
            return False
        self._room.ring()
        if not core.profile.ack_when_saved:
            self._ask_step()
        elif not self._step_wanted:  # else that step takes this along
            self._confirmed_unsaved = True  # the relay has its ack; nothing of this is urgent
            self._confirmed_bell.ring()
        return core.overflowed and core.inbox_has_room

    async def _ask_for_the_rest(self) -> None:
        if self._socket is not None:
            await self._socket.abort()  # the relay offers what was passed over on the next connection

    def events(self) -> "Events":
        """Facts from now on, for ``async for``. Who lags more than ``limits.events`` behind misses the oldest."""
        listener = Events(self.config.limits.events)
        self._listeners.add(listener)
        return listener

    # --- the step ----------------------------------------------------------------------------------------------------

    # One task takes what the core has decided, saves it and sends it. Everybody else asks it to and waits until their
    # part is saved: whoever is cancelled while waiting, by whatever means, leaves nothing half done.

    async def _step(self) -> None:
        """Have everything saved that the core has changed so far; sending follows."""
        await self._until_saved(self._ask_step())

    def _ask_step(self) -> "_Step":
        self._step_wanted = True
        self._work.ring()
        return self._next_step

    async def _until_saved(self, step: "_Step") -> None:
        while not step.saved:
            if self._broken is not None:
                raise self._broken
            if self._left:
                raise NotConnected("the client has been left: make a new one")
            await step.told.wait()

    async def _keep_saved(self) -> None:
        """Save what the core changed, then tell what happened and send what it wrote; again and again."""
        core = self._open_core()
        while True:
            while not self._step_wanted:
                await self._work.wait()
            self._step_wanted = False
            step, self._next_step, socket = self._next_step, _Step(), self._socket
            self._saving = step
            if self._receivers_waiting:
                self._take_arrivals(step)  # at once: that they came and that they were handed over is one write
            self._confirmed_unsaved = False
            changes, writes = core.changes(), core.writes()
            if changes:
                await self._save(changes)
                if changes.peers and self._registration is not None:
                    self._registration.keys_moved = True
            logs.saved(changes)
            step.saved = True
            step.told.ring()
            if events := core.events():
                self._tell(*events)
            for did in core.fetches():
                self._spawn(self._fetch_bundle, did)
            if self._arrivals:
                self._arrived[0].ring()
            for lane in core.inbox.lanes_ready():
                self._arrived[lane].ring()
            if core.next_deadline() < self._due_at:
                self._due_earlier.ring()
            if writes and socket is not None and socket is self._socket and await self._send(socket, writes):
                core.sent()

    async def _keep_confirmed(self) -> None:
        """See to it that confirmations are saved soon, with whatever else there is to save."""
        while True:
            while not self._confirmed_unsaved:
                await self._confirmed_bell.wait()
            await anyio.sleep(CONFIRMED_WITHIN)
            if self._confirmed_unsaved:
                self._ask_step()

    async def _save(self, changes: Changes) -> None:
        assert self._store is not None
        started = time.monotonic()
        try:
            if self._store.durable:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(self._store.save, changes)
            else:
                self._store.save(changes)
        except StoreError as error:
            # The core is ahead of the disk now. Going on could send with keys that a restart would use again.
            await self._break(error)
            raise
        self._counters.saved(time.monotonic() - started)

    async def _break(self, error: MeshError) -> None:
        self._broken = error
        if self._socket is not None:
            await self._socket.abort()
        self._wake_all()

    async def _send(self, socket: WebSocket, writes: list[bytes]) -> bool:
        """Write frames in batches. Returns whether all of them are on their way."""
        try:
            for batch in _batches(writes):
                with anyio.fail_after(self.config.timeouts.connect + sum(map(len, batch)) / SLOWEST_LINK):
                    await socket.send(batch)
                self._counters.sent(batch)
        except (Closed, TimeoutError):
            log.debug(LogEvent("ended_while_sending"))  # the reader sees the same end and reports it
            await socket.abort()
            return False
        return True

    def _tell(self, *events: Event) -> None:
        logs.told(events)
        listeners = list(self._listeners)
        for event in events:
            self._counters.told(event)
            if isinstance(event, DeliveryChanged):
                receipt = self._receipts.get(event.id)
                if receipt is not None:
                    receipt.advance(event.state, event.detail)
            elif isinstance(event, KnockReceived):
                if self.config.knock_policy is not accept_everyone:
                    self._spawn(self._ask_policy, event)
            elif isinstance(event, Connected | Disconnected):
                if isinstance(event, Disconnected) and not event.retrying:
                    self._refused = RelayRefused(event.code, event.reason)
                self._wake_all()
            for listener in listeners:
                listener.tell(event)

    def _check_able(self) -> None:
        """Say so if nothing can be sent or received any more."""
        reason = self._hopeless()
        if reason is not None:
            raise reason

    def _hopeless(self) -> MeshError | None:
        if self._left:
            return NotConnected("the client has been left: make a new one")
        return self._broken or self._refused

    def _wake_all(self) -> None:
        """Everybody who waits looks again at what has become of the client."""
        reason = self._hopeless()
        for receipt in list(self._receipts.values()):
            receipt.give_up(reason)
        if self._files is not None:
            self._files.give_up(reason)
        self._saving.told.ring()
        self._next_step.told.ring()
        for bell in self._arrived.values():
            bell.ring()
        self._link_changed.ring()

    # --- tasks -------------------------------------------------------------------------------------------------------

    def _spawn(self, task: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Run a task until the client is left, or until its store fails; then every call of the caller says so."""

        async def run() -> None:
            try:
                await task(*arguments)
            except StoreError as error:
                log.error(LogEvent("client_stopped", detail=error))
            except NotConnected:
                pass  # the client was left in the meantime
            except Exception as error:  # a mistake of ours or of a service must not end the caller's block
                log.exception(LogEvent("task_failed"))
                await self._break(MeshError(f"the client has stopped: {type(error).__name__}; the log says where"))

        assert self._tasks is not None
        self._tasks.start_soon(run)

    async def _keep_connected(self) -> None:
        """Connect, read until the end, wait, again; for as long as a connection is wanted."""
        core = self._open_core()
        backoff = self.config.backoff
        ceiling = backoff.first
        while True:
            while not self._stay_connected():
                await self._link_changed.wait()
            started = time.monotonic()
            try:
                with anyio.fail_after(self.config.timeouts.connect):
                    self._socket = await WebSocket.connect(
                        self.config.relay_url, tls=self.config.tls, proxy=self.config.proxy
                    )
            except TimeoutError:
                self._trouble = TransportError(f"{self.config.relay_url} does not answer")
            except TransportError as error:
                self._trouble = error
            else:
                self._trouble = None
                await self._converse(core, self._socket)
            if self._trouble is not None:
                self._counters.not_connected(str(self._trouble))
            if time.monotonic() - started >= backoff.stable_after:
                ceiling = backoff.first
            if self._stay_connected():
                await anyio.sleep(random.uniform(0, ceiling))  # noqa: S311 - jitter, not a secret
                ceiling = min(ceiling * 2, backoff.last)

    def _stay_connected(self) -> bool:
        return self._wanted and self._refused is None

    async def _converse(self, core: ClientCore, socket: WebSocket) -> None:
        ended = Closed(1006, "")
        try:
            socket.watch(self.config.heartbeat, self.config.timeouts.silence)
            core.opened(self._now(), socket.challenge)
            await self._step()
            with anyio.CancelScope() as patience:
                # A relay that sent a challenge answers; one that does not within the time is no relay.
                patience.deadline = anyio.current_time() + self.config.timeouts.proof
                while True:
                    if core.link is Link.UP:
                        patience.deadline = float("inf")
                    # Not before the relay's verdict: it comes first, and the application waits for it.
                    # A relay that keeps what is not acknowledged needs no holding back: the core passes over.
                    while core.link is Link.UP and core.inbox_full and "receipts" not in core.features:
                        await self._room.wait()
                    arrived = await socket.receive()
                    now = self._now()
                    for raw in arrived:
                        core.receive(raw, now)
                    await self._step()
            if patience.cancelled_caught:
                ended = Closed(1006, "the relay did not answer our proof in time")
        except Closed as error:
            ended = error
        finally:
            core.closed(ended.code, ended.reason)
            with anyio.move_on_after(1, shield=True):
                await socket.close()
            self._socket = None
            self._link_changed.ring()
        await self._step()

    async def _keep_time(self) -> None:
        """Wake the core when it has something to do."""
        core = self._open_core()
        while True:
            self._due_at = core.next_deadline()
            with anyio.move_on_after(max(0.0, self._due_at - time.monotonic())):
                await self._due_earlier.wait()
                continue
            core.tick(self._now())
            await self._step()

    async def _fetch_bundle(self, did: Did) -> None:
        core = self._open_core()
        registry = self._open_registry()
        registered = False
        try:
            agent = await registry.get_agent(did)
            hint = Dialect.AGT4 if agent.registration == "legacy" else None
            registered = True
            bundle = (await registry.fetch_prekeys(did)).checked(did)
        except AgentNotFound as error:
            # Who is registered and was stopped before its prekeys were published publishes them when it is back.
            core.no_bundle(did, error, self._now(), final=not registered)
        except PeerError as error:
            core.no_bundle(did, error, self._now(), final=True)
        except RegistryRefused as error:
            core.no_bundle(did, error, self._now(), final=400 <= error.status < 500 and error.status != 429)
        except (ServiceError, TransportError) as error:
            core.no_bundle(did, error, self._now(), final=False)
        else:
            core.bundle(did, bundle, self._now(), hint)
        await self._step()

    async def _ask_policy(self, knock: KnockReceived) -> None:
        question = (knock.peer, knock.knock_id)
        try:
            with anyio.move_on_after(self.config.timeouts.policy) as scope:
                self._pondering[question] = scope
                if len(self._pondering) > QUESTIONS:
                    self._pondering.popitem(last=False)[1].cancel()
                verdict = self.config.knock_policy(knock)
                accept = await verdict if isawaitable(verdict) else verdict
        except Exception:  # the policy is foreign code; whatever it raises, the knock is not let in
            log.exception(LogEvent("knock_policy_failed", peer=knock.peer))  # refused when its time is up
            return
        finally:
            self._pondering.pop(question, None)
        if scope.cancelled_caught:
            return  # the core has refused the knock meanwhile
        self._open_core().answer_knock(knock.peer, knock.knock_id, accept=bool(accept), now=self._now())
        await self._step()

    # --- small verbs -------------------------------------------------------------------------------------------------

    def _now(self) -> Instant:
        skew = self._registry.clock_skew if self._registry is not None else None
        wrong = skew is not None and SKEW_WORTH_CORRECTING <= abs(skew) <= LARGEST_CORRECTION
        return Instant(time.monotonic(), time.time() + (skew if skew is not None and wrong else 0.0))

    def _open_core(self) -> ClientCore:
        if self._left:
            raise NotConnected("the client has been left: make a new one")
        if self._core is None:
            raise NotConnected("the client is not open: use it inside 'async with MeshClient(...)'")
        return self._core

    def _open_files_or_fail(self) -> Files:
        if self._files is None or self._left:
            raise NotConnected("the client is not open: use it inside 'async with MeshClient(...)'")
        return self._files

    def _open_registry(self) -> RegistryClient:
        if self._registry is None:
            raise NotConnected("the client is not open: use it inside 'async with MeshClient(...)'")
        return self._registry


class _Step:
    """What has changed in the core until it is taken to be saved, and who waits for that."""

    __slots__ = ("saved", "told")

    def __init__(self) -> None:
        self.saved = False
        self.told = Bell()
        """Rings when it is saved, or cannot be any more."""


def _batches(writes: list[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for raw in writes:
        batch.append(raw)
        size += len(raw)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


__all__ = ["Agent", "Events", "Inbox", "MeshClient", "Message", "Receipt"]
