"""The client shell against real servers: both event loops, servers that restart, bad input, two clients at once."""

import asyncio
import contextlib
import json
import shutil
import signal
import sqlite3
import sys
import threading
import uuid
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import anyio
import pytest
from websockets.sync.server import serve

from meshlib import (
    AgentNotFound,
    AmbiguousName,
    Backoff,
    BlockingMeshClient,
    ClientConfig,
    Connected,
    DeliveryState,
    Disconnected,
    FaultFound,
    Identity,
    IdentityInUse,
    InvalidValue,
    KnockAccepted,
    KnockReceived,
    KnockRefused,
    Limits,
    MeshClient,
    NotConnected,
    PeerVerified,
    Prekeys,
    RelayRefused,
    SessionLost,
    StoreError,
    Timeouts,
    TransportError,
    UsageError,
    accept_only,
    refuse_everyone,
)
from meshlib.client.registry import RegistryClient
from meshlib.store.memory import MemoryStore
from meshlib.testing import SeededEntropy
from meshlib.wire.registry import Signer
from tests.commands import running

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PATIENCE = 30
QUICK = Backoff(first=0.01, last=0.05)


def unique(name):
    """A display name nobody else in this run has."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def config(servers):
    def make(name=None, **options):
        return ClientConfig(
            name=name or unique("agent"),
            relay_url=servers.relay,
            registry_url=servers.registry,
            **{"backoff": QUICK, **options},
        )

    return make


@contextmanager
def relay_process(store, port=0, *options):
    """A relay that can be killed and started again on the same port and store."""
    argv = ["mesh-relay", "serve", "--host", "127.0.0.1", "--port", str(port), "--store", str(store), *options]
    with running([sys.executable, "-m", "mesh_relay", *argv[1:]]) as process:
        yield process, json.loads(process.line())["port"]


@asynccontextmanager
async def pair(config, **options):
    """Two clients that know each other's name."""
    one, other = unique("alice"), unique("bob")
    async with MeshClient(config(one, **options)) as alice, MeshClient(config(other, **options)) as bob:
        yield alice, bob


async def next_event(events, kind):
    with anyio.fail_after(PATIENCE):
        async for event in events:
            if isinstance(event, kind):
                return event
    raise AssertionError("the events ended")


async def receive(client):
    with anyio.fail_after(PATIENCE):
        message = await client.receive()
        await message.ack()
        return message


@pytest.mark.parametrize("payload", ["text", b"\xff\x00", {"k": [1, 2.5, None]}, "\U0001f600\u2028", "x" * 65_536])
async def test_a_payload_arrives_as_it_was(config, payload):
    async with pair(config) as (alice, bob):
        await alice.send(bob.config.name, payload)
        message = await receive(bob)
        assert (message.payload, message.sender, message.encrypted) == (payload, alice.did, True)


async def test_messages_arrive_in_order_and_are_answered(config):
    async with pair(config) as (alice, bob):

        async def answer():
            async for message in bob.inbox():
                await bob.send(message.sender, message.payload * 2)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            for number in range(50):
                await alice.send(bob.did, number)
            answers = [(await receive(alice)).payload for _ in range(50)]
            tasks.cancel_scope.cancel()
        assert answers == [number * 2 for number in range(50)]


async def test_a_receipt_tells_how_far_a_message_has_come(config):
    async with pair(config) as (alice, bob):
        receipt = await alice.send(bob.did, "hello")
        with anyio.fail_after(PATIENCE):
            await receipt.wait(DeliveryState.RELAYED)
            await receive(bob)
            assert await receipt.wait("delivered") is DeliveryState.DELIVERED


async def test_an_absent_recipient_gets_its_mail_later(config):
    store = MemoryStore()
    identity = Identity.generate(SeededEntropy(uuid.uuid4().hex))
    name = unique("bob")
    async with MeshClient(config(unique("alice"))) as alice:
        async with MeshClient(config(name, identity=identity), store=store) as bob:
            await alice.send(bob.did, "before")
            await receive(bob)
        with anyio.fail_after(PATIENCE):
            await alice.send(name, "while away", wait="stored")
        async with MeshClient(config(name, identity=identity), store=store) as bob:
            assert (await receive(bob)).payload == "while away"


async def test_a_client_on_disk_goes_on_where_it_was(config, tmp_path):
    name = unique("bob")
    async with MeshClient(config()) as alice:
        async with MeshClient(config(name, store=tmp_path / "bob")) as bob:
            did = bob.did
            await alice.send(did, "first")
            await receive(bob)
        await alice.send(did, "second")
        async with MeshClient(config(name, store=tmp_path / "bob")) as bob:
            assert bob.did == did
            assert (await receive(bob)).payload == "second"


async def test_a_receipt_survives_a_restart(config, tmp_path):
    store = MemoryStore()
    identity = Identity.generate(SeededEntropy(uuid.uuid4().hex))
    async with MeshClient(config(identity=identity), store=store) as bob:
        did = bob.did
        await bob.disconnect()
        async with MeshClient(config(store=tmp_path / "alice")) as alice:
            with anyio.fail_after(PATIENCE):
                first = await alice.send(did, "hello", wait="stored")
        async with MeshClient(config(store=tmp_path / "alice")) as alice:
            assert [receipt.id for receipt in alice.undelivered()] == [first.id]
            receipt = alice.receipt(first.id)
            await bob.connect()
            await receive(bob)
            with anyio.fail_after(PATIENCE):
                await receipt.wait("delivered")
        async with MeshClient(config(store=tmp_path / "alice")) as alice:
            assert alice.undelivered() == []
            assert alice.receipt(first.id).state == "delivered"
            assert alice.receipt("never sent") is None


async def test_prekeys_of_a_lost_store_are_not_offered_any_more(config):
    identity = Identity.generate(SeededEntropy(uuid.uuid4().hex))
    async with MeshClient(config()) as alice:
        async with MeshClient(config(identity=identity)):
            pass
        async with MeshClient(config(identity=identity)) as bob:
            told = alice.events()
            await alice.send(bob.did, "hello")
            assert isinstance(await next_event(told, KnockAccepted | SessionLost), KnockAccepted)
            assert (await receive(bob)).payload == "hello"


async def test_an_old_copy_of_a_store_is_refused(config, tmp_path):
    name = unique("bob")
    async with MeshClient(config(name, store=tmp_path / "bob")) as bob:
        assert bob.connected
    shutil.copytree(tmp_path / "bob", tmp_path / "backup")
    async with MeshClient(config(name, store=tmp_path / "bob")) as bob:
        assert bob.connected
    with pytest.raises(StoreError, match="counted to 1, but the registry to 2"):
        async with MeshClient(config(name, store=tmp_path / "backup")):
            pass


async def test_a_copy_of_a_store_made_in_use_is_refused_once_that_has_counted_on(config, tmp_path):
    store, often = tmp_path / "bob", Prekeys(check_every=0.1)
    async with MeshClient(config()) as alice:
        async with MeshClient(config(store=store, prekeys=often)) as bob:
            shutil.copytree(store, tmp_path / "backup")
            await alice.send(bob.did, "moves keys")
            assert (await receive(bob)).payload == "moves keys"
            async with RegistryClient(bob.config.registry_url) as registry:
                with anyio.fail_after(PATIENCE):
                    while (await registry.get_agent(bob.did)).metadata["mesh_epoch"] == "1":
                        await anyio.lowlevel.checkpoint()
        with pytest.raises(StoreError, match="it is a copy or an old backup"):
            async with MeshClient(config(store=tmp_path / "backup")):
                pass


async def test_a_store_in_use_stops_once_a_copy_of_it_has_been_opened(config, tmp_path):
    store, often = tmp_path / "bob", Prekeys(check_every=0.1)
    async with MeshClient(config()) as alice, MeshClient(config(store=store, prekeys=often)) as bob:
        shutil.copytree(store, tmp_path / "copy")
        (tmp_path / "copy" / "lock").unlink(missing_ok=True)
        async with MeshClient(config(store=tmp_path / "copy")):
            pass
        await bob.connect()
        await alice.send(bob.did, "moves keys")

        async def listen():
            while True:
                await bob.receive()

        with anyio.fail_after(PATIENCE), pytest.raises(StoreError, match="it is a copy or an old backup"):
            await listen()


async def test_what_was_not_confirmed_comes_again(config, tmp_path):
    folder = tmp_path / "bob"
    async with MeshClient(config()) as alice:
        async with MeshClient(config(store=folder)) as bob:
            await alice.send(bob.did, "important")
            with anyio.fail_after(PATIENCE):
                message = await bob.receive()
            assert not message.redelivered
        async with MeshClient(config(store=folder)) as bob:
            with anyio.fail_after(PATIENCE):
                message = await bob.receive()
            assert (message.payload, message.redelivered) == ("important", True)
            await message.ack()


async def test_going_on_confirms_soon_even_if_nothing_else_happens(config):
    class Watched(MemoryStore):
        durable = True
        confirmed = threading.Event()

        def save(self, changes):
            super().save(changes)
            if None in changes.inbox.values():
                self.confirmed.set()

    store = Watched()
    async with MeshClient(config()) as alice, MeshClient(config(), store=store) as bob:
        await alice.send(bob.did, "the only one")
        inbox = bob.inbox()
        with anyio.fail_after(PATIENCE):
            await anext(inbox)
        assert not store.confirmed.is_set()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anext, inbox)
            assert await anyio.to_thread.run_sync(store.confirmed.wait, PATIENCE)
            tasks.cancel_scope.cancel()


async def test_going_on_and_leaving_confirms(config, tmp_path):
    folder = tmp_path / "bob"
    async with MeshClient(config()) as alice:
        async with MeshClient(config(store=folder)) as bob:
            await alice.send(bob.did, "first")
            await alice.send(bob.did, "second")
            inbox = bob.inbox()
            with anyio.fail_after(PATIENCE):
                await anext(inbox)
                await anext(inbox)
        async with MeshClient(config(store=folder)) as bob:
            with anyio.fail_after(PATIENCE):
                message = await bob.receive()
            assert (message.payload, message.redelivered) == ("second", True)
            await message.ack()


async def test_a_full_inbox_keeps_no_client_from_starting(config, tmp_path):
    name, few = unique("bob"), Limits(inbox=2)
    async with MeshClient(config()) as alice:
        async with MeshClient(config(name, store=tmp_path, limits=few)) as bob:
            with anyio.fail_after(PATIENCE):
                for number in range(2):
                    await alice.send(bob.did, number, wait="delivered")
        with anyio.fail_after(PATIENCE):
            async with MeshClient(config(name, store=tmp_path, limits=few)) as bob:
                await alice.send(bob.did, 2)
                assert [(await receive(bob)).payload for _ in range(3)] == [0, 1, 2]


async def test_an_agent_that_was_stopped_before_it_published_prekeys_is_waited_for(config):
    identity = Identity.generate(SeededEntropy(uuid.uuid4().hex))
    settings = config(identity=identity)
    async with RegistryClient(settings.registry_url, signer=Signer.of(identity, identity.did)) as registry:
        await registry.register(identity, [settings.name], {})
    async with MeshClient(config()) as alice:
        told = alice.events()
        receipt = await alice.send(settings.name, "welcome back")
        await next_event(told, FaultFound)
        async with MeshClient(settings) as bob:
            assert (await receive(bob)).payload == "welcome back"
            with anyio.fail_after(PATIENCE):
                assert await receipt.wait() is DeliveryState.DELIVERED


async def test_a_loop_body_that_raises_gets_the_message_again(config):
    async with pair(config) as (alice, bob):
        await alice.send(bob.did, "fragile")

        async def stumble():
            async for _ in bob.inbox():
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError), anyio.fail_after(PATIENCE):
            await stumble()
        with anyio.fail_after(PATIENCE):
            async for message in bob.inbox():
                assert (message.payload, message.redelivered) == ("fragile", True)
                break


async def test_one_identity_belongs_to_one_client(config, tmp_path):
    async with MeshClient(config(store=tmp_path / "one")):
        with pytest.raises(IdentityInUse):
            async with MeshClient(config(store=tmp_path / "one")):
                pass


async def test_two_clients_of_one_process_share_nothing(config):
    async with pair(config) as (alice, bob):
        assert alice.did != bob.did
        async with pair(config) as (carol, dave):
            await carol.send(dave.did, "us two")
            assert (await receive(dave)).payload == "us two"
        await alice.send(bob.did, "and us")
        assert (await receive(bob)).payload == "and us"


async def test_a_name_nobody_has_is_said_to_be_so(config):
    async with MeshClient(config()) as alice:
        with pytest.raises(AgentNotFound, match="nobody-here"):
            await alice.send("nobody-here", "hello?")


async def test_a_did_nobody_has_is_reported_on_the_receipt(config):
    async with MeshClient(config()) as alice:
        receipt = await alice.send("did:mesh:" + "0" * 32, "hello?")
        with pytest.raises(KnockRefused), anyio.fail_after(PATIENCE):
            await receipt.wait("relayed")


async def test_a_name_two_agents_have_is_an_error_that_lists_them(config):
    name = unique("twin")
    async with (
        MeshClient(config()) as alice,
        MeshClient(config(name)) as one,
        MeshClient(config(name)) as other,
    ):
        with pytest.raises(AmbiguousName) as caught:
            await alice.send(name, "which of you?")
        assert set(caught.value.dids) == {one.did, other.did}


async def test_a_throw_away_agent_leaves_no_ghost(config):
    name = unique("ghost")
    async with MeshClient(config()) as alice:
        async with MeshClient(config(name)):
            assert len(await alice.discover(name)) == 1
        assert await alice.discover(name) == []


async def test_capabilities_are_found_and_can_change(config, tmp_path):
    skill = unique("skill")
    async with MeshClient(config()) as alice:
        async with MeshClient(config(store=tmp_path / "a", capabilities=(skill,))) as expert:
            (found,) = await alice.discover(skill)
            assert (found.did, skill in found.capabilities) == (expert.did, True)
        async with MeshClient(config(store=tmp_path / "a", capabilities=())):
            assert await alice.discover(skill) == []


async def test_a_refusing_policy_is_told_to_the_sender(config):
    async with (
        MeshClient(config()) as alice,
        MeshClient(config(knock_policy=refuse_everyone)) as hermit,
    ):
        receipt = await alice.send(hermit.did, "hello?")
        with pytest.raises(KnockRefused), anyio.fail_after(PATIENCE):
            await receipt.wait("delivered")


async def test_a_policy_may_take_its_time_and_name_its_friends(config):
    async with MeshClient(config()) as alice, MeshClient(config()) as mallory:
        friends = accept_only(alice.did)

        async def ponder(knock):
            await anyio.lowlevel.checkpoint()
            return friends(knock)

        async with MeshClient(config(knock_policy=ponder)) as bob:
            await alice.send(bob.did, "friend")
            refused = await mallory.send(bob.did, "stranger")
            assert (await receive(bob)).payload == "friend"
            with pytest.raises(KnockRefused), anyio.fail_after(PATIENCE):
                await refused.wait("delivered")


async def test_a_policy_that_raises_lets_nobody_in_and_breaks_nothing(config, caplog):
    def broken(knock):
        raise ZeroDivisionError

    timeouts = Timeouts(policy=0.05)
    async with MeshClient(config()) as alice, MeshClient(config(knock_policy=broken, timeouts=timeouts)) as bob:
        receipt = await alice.send(bob.did, "hello?")
        with pytest.raises(KnockRefused), anyio.fail_after(PATIENCE):
            await receipt.wait("delivered")
        assert bob.connected
    assert "knock_policy_failed" in caplog.text


async def test_events_tell_the_story(config):
    async with pair(config) as (alice, bob):
        told = bob.events()
        await alice.send(bob.did, "hello")
        assert (await next_event(told, KnockReceived)).peer == alice.did
        assert (await next_event(told, PeerVerified)).first


async def test_disconnecting_and_connecting_again_loses_nothing(config):
    async with pair(config) as (alice, bob):
        await bob.disconnect()
        assert not bob.connected
        await alice.send(bob.did, "are you there?")
        await bob.connect()
        assert (await receive(bob)).payload == "are you there?"
        await bob.disconnect()
        await bob.send(alice.did, "queued while away")
        await bob.connect()
        assert (await receive(alice)).payload == "queued while away"


async def test_leaving_and_entering_again_and_again(config, tmp_path):
    async with MeshClient(config()) as alice:
        for number in range(8):
            async with MeshClient(config(store=tmp_path / "bob")) as bob:
                await alice.send(bob.did, number)
                assert (await receive(bob)).payload == number


async def test_a_killed_relay_loses_nothing(config, tmp_path):
    with relay_process(tmp_path / "relay.db") as (first, port):
        url = f"ws://127.0.0.1:{port}"
        one, other = replace(config(), relay_url=url), replace(config(), relay_url=url)
        async with MeshClient(one) as alice, MeshClient(other) as bob:
            told = alice.events()
            await alice.send(bob.did, "before")
            assert (await receive(bob)).payload == "before"
            first.signal(signal.SIGKILL)
            assert (await next_event(told, Disconnected)).retrying
            await alice.send(bob.did, "while it is down")
            with relay_process(tmp_path / "relay.db", port):
                await next_event(told, Connected)
                assert (await receive(bob)).payload == "while it is down"


async def test_a_newer_client_of_the_same_identity_takes_over_for_good(config):
    identity = Identity.generate(SeededEntropy(uuid.uuid4().hex))
    async with MeshClient(config(identity=identity)) as old:
        told = old.events()
        async with MeshClient(config(identity=identity)):
            ended = await next_event(told, Disconnected)
            assert (ended.code, ended.retrying) == (4006, False)
            assert not old.connected


async def test_a_body_that_raises_raises_what_it_raised(config):
    with pytest.raises(ZeroDivisionError):
        async with MeshClient(config()):
            raise ZeroDivisionError


async def test_cancelling_the_body_leaves_in_order(config):
    with anyio.move_on_after(0.2) as scope:
        async with MeshClient(config()):
            await anyio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_registry_that_is_down_is_named(config):
    with pytest.raises(TransportError, match="registry"):
        async with MeshClient(replace(config(), registry_url="http://127.0.0.1:9")):
            pass


async def test_a_relay_that_is_down_is_named(config):
    broken = replace(config(), relay_url="ws://127.0.0.1:9", timeouts=Timeouts(connect=0.3, proof=0.1))
    with pytest.raises(TransportError, match=r"127\.0\.0\.1:9"):
        async with MeshClient(broken):
            pass


async def test_a_relay_that_refuses_us_is_not_tried_again(config):
    attempts = []

    def refuse(connection):
        attempts.append(1)
        connection.recv()
        connection.close(4003, "authentication failed")

    with serve(refuse, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        with pytest.raises(RelayRefused, match="4003"):
            async with MeshClient(replace(config(), relay_url=url)):
                pass
        server.shutdown()
        thread.join()
    assert len(attempts) == 1


async def test_a_silent_upstream_relay_is_taken_at_its_silence(config):
    def swallow(connection):
        for _ in connection:
            pass

    with serve(swallow, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        patient = Timeouts(silent_relay=0.05)
        async with MeshClient(replace(config(), relay_url=url, timeouts=patient)) as alice:
            assert alice.features == frozenset()
        server.shutdown()
        thread.join()


async def test_a_closed_client_says_what_to_do(config):
    client = MeshClient(config())
    with pytest.raises(NotConnected, match="async with"):
        await client.send("bob", "too early")


async def test_a_payload_without_json_form_is_refused_and_harms_nothing(config):
    async with pair(config) as (alice, bob):
        with pytest.raises(InvalidValue):
            await alice.send(bob.did, object())
        await alice.send(bob.did, "fine")
        assert (await receive(bob)).payload == "fine"


async def test_a_store_that_fails_stops_the_client_and_says_so(config):
    class Failing(MemoryStore):
        failing = False

        def save(self, changes):
            if self.failing:
                raise StoreError("the disk is full: make room, then start again")
            super().save(changes)

    store = Failing()
    async with MeshClient(config(), store=store) as alice, MeshClient(config()) as bob:
        await alice.send(bob.did, "fine")
        await receive(bob)
        store.failing = True
        with pytest.raises(StoreError, match="make room"):
            await alice.send(bob.did, "lost?")
        store.failing = False
        with pytest.raises(StoreError, match="make room"):  # the core is ahead of the disk: no key is used twice
            await alice.send(bob.did, "no")


async def test_the_relay_stores_ciphertext_only(config, tmp_path):
    database = tmp_path / "relay.db"
    with relay_process(database) as (relay, port):
        here = {"relay_url": f"ws://127.0.0.1:{port}"}
        identity = Identity.generate(SeededEntropy(uuid.uuid4().hex))
        async with MeshClient(replace(config(), **here)) as alice:
            async with MeshClient(replace(config(identity=identity), **here)) as bob:
                did = bob.did
            with anyio.fail_after(PATIENCE):
                await alice.send(did, "the secret word", wait="stored")
        relay.stop()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        dump = "\n".join(connection.iterdump())
    assert did in dump
    assert "the secret word" not in dump


async def test_a_message_that_cannot_be_read_is_an_event_and_no_end(config):
    async with pair(config) as (alice, bob):
        told = bob.events()
        await alice.send(bob.did, "hello")
        await receive(bob)
        plain = {
            "v": 1,
            "type": "message",
            "from": alice.did,
            "to": bob.did,
            "id": "x",
            "ts": "t",
            "ciphertext": "e30=",
        }
        await alice._socket.send([json.dumps(plain | {"plaintext": True}).encode()])
        assert (await next_event(told, FaultFound)).kind == "decrypt"
        await alice.send(bob.did, "still here")
        assert (await receive(bob)).payload == "still here"


class TestCancelled:
    """Whoever is cancelled while waiting leaves nothing half done."""

    async def test_in_the_middle_of_sends_loses_nothing_that_was_taken(self, config, tmp_path):
        async with MeshClient(config(store=tmp_path / "alice")) as alice, MeshClient(config()) as bob:
            taken = []
            for number in range(150):
                with anyio.move_on_after(0.0004 * (number % 5)):
                    await alice.send(bob.did, number)
                    taken.append(number)
            await alice.send(bob.did, "end")
            received = []
            while not received or received[-1] != "end":
                received.append((await receive(bob)).payload)
            assert set(taken) <= set(received)
            assert received[:-1] == sorted(set(received[:-1]))

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_by_asyncios_own_means_does_not_break_the_store(self, config, tmp_path, anyio_backend):
        async with MeshClient(config(store=tmp_path / "alice")) as alice, MeshClient(config()) as bob:
            for number in range(100):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(alice.send(bob.did, number), 0.0004 * (number % 5))
            await alice.send(bob.did, "end")
            while (await receive(bob)).payload != "end":
                pass

    async def test_receivers_lose_nothing(self, config):
        async with pair(config) as (alice, bob):
            received = []
            for number in range(60):
                await alice.send(bob.did, number)
                with anyio.move_on_after(0.0005 * (number % 4)):
                    received.append((await bob.receive()).payload)
            while len(received) < 60:
                received.append((await receive(bob)).payload)
            assert received == list(range(60))


async def test_several_receivers_share_what_comes(config):
    async with pair(config) as (alice, bob):
        received = []

        async def work():
            while len(received) < 40:
                with anyio.move_on_after(PATIENCE):
                    message = await bob.receive()
                    received.append(message.payload)
                    await message.ack()
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(work)
            for number in range(40):
                await alice.send(bob.did, number)
        assert sorted(received) == list(range(40))


async def test_a_full_outbox_keeps_nobody_from_starting(config, tmp_path):
    async with MeshClient(config()) as bob:
        async with MeshClient(config(store=tmp_path / "alice")) as alice:
            await alice.send(bob.did, "first")
            await receive(bob)
            await alice.disconnect()
            for number in range(1_200):
                await alice.send(bob.did, number)
        async with MeshClient(config(store=tmp_path / "alice")):
            assert [(await receive(bob)).payload for _ in range(1_200)] == list(range(1_200))


async def test_an_agent_that_only_sends_is_not_stopped_by_its_mail(config):
    async with MeshClient(config(limits=Limits(inbox=20))) as alice, MeshClient(config()) as bob:
        await alice.send(bob.did, "hello")
        await receive(bob)
        for number in range(60):
            await bob.send(alice.did, number)
        with anyio.fail_after(PATIENCE):
            receipt = await alice.send(bob.did, "still talking")
            await receive(bob)
            await receipt.wait("delivered")
        received = set()
        while len(received) < 60:  # what was passed over comes when there is room
            received.add((await receive(alice)).payload)


async def test_who_waits_learns_that_nothing_can_come(config):
    identity = Identity.generate(SeededEntropy(uuid.uuid4().hex))
    async with MeshClient(config(identity=identity)) as old:
        receipt = await old.send("did:mesh:" + "0" * 31 + "1", "never delivered")
        async with MeshClient(config(identity=identity)):
            with anyio.fail_after(PATIENCE):
                with pytest.raises(RelayRefused):
                    await old.receive()
                with pytest.raises((RelayRefused, KnockRefused)):
                    await receipt.wait()
                with pytest.raises(RelayRefused):
                    await old.send("did:mesh:" + "0" * 32, "no")
    with pytest.raises(NotConnected, match="left"):
        await old.receive()
    with pytest.raises(UsageError, match="entered once"):
        await old.__aenter__()


async def test_a_wait_for_what_does_not_exist_sends_nothing(config):
    async with pair(config) as (alice, bob):
        with pytest.raises(InvalidValue, match="wait for"):
            await alice.send(bob.did, "hello", wait="read")
        assert alice.undelivered() == []


class TestBlocking:
    """The same client for programs without an event loop."""

    def test_two_clients_talk(self, config):
        name = unique("bob")
        with BlockingMeshClient(config()) as alice, BlockingMeshClient(config(name)) as bob:
            receipt = alice.send(name, {"hello": "there"}, timeout=PATIENCE)
            message = bob.receive(PATIENCE)
            assert message.payload == {"hello": "there"}
            message.ack()
            bob.send(message.sender, "welcome", wait="relayed", timeout=PATIENCE)
            assert [one.payload for one in alice.inbox(timeout=2)] == ["welcome"]
            assert receipt.peer == bob.did
            assert [agent.did for agent in alice.discover(name)] == [bob.did]

    def test_nothing_to_receive_is_none(self, config):
        with BlockingMeshClient(config()) as alice:
            assert alice.receive(0.05) is None

    def test_errors_come_through(self, config):
        with BlockingMeshClient(config()) as alice, pytest.raises(AgentNotFound):
            alice.send("nobody-here", "hello?")

    def test_leaving_and_coming_back(self, config):
        with BlockingMeshClient(config()) as alice, BlockingMeshClient(config()) as bob:
            bob.disconnect()
            alice.send(bob.did, "later")
            bob.connect()
            assert bob.receive(PATIENCE).payload == "later"

    def test_a_closed_client_says_what_to_do(self, config):
        with pytest.raises(NotConnected, match="with BlockingMeshClient"):
            BlockingMeshClient(config()).send("bob", "too early")

    def test_a_failing_start_raises_what_failed(self, config):
        with pytest.raises(TransportError), BlockingMeshClient(replace(config(), registry_url="http://127.0.0.1:9")):
            pass
