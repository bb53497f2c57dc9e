"""Requests, gatherings and routes against real servers, on both event loops."""

import uuid
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from meshlib import (
    BlockingMeshClient,
    ClientConfig,
    InvalidValue,
    KnockRefused,
    MeshClient,
    StoreError,
    TaskFailed,
    TaskState,
    TaskUnfinished,
    refuse_everyone,
)
from meshlib.wire.envelopes import (
    TaskCancel,
    TaskProgress,
    TaskReceived,
    TaskRequest,
    TaskResponse,
    read_envelope,
    write_envelope,
)

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PATIENCE = 30


def unique(name):
    return f"{name}-{uuid.uuid4().hex[:8]}"


@asynccontextmanager
async def agents(servers, *names, **options):
    """Clients of these names, all of them entered."""
    urls = {"relay_url": servers.relay, "registry_url": servers.registry}
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(MeshClient(ClientConfig(name=name, **urls, **options))) for name in names
        ]


async def next_task(agent):
    message = await agent.receive()
    await message.ack()
    task = read_envelope(message.payload)
    assert isinstance(task, TaskRequest)
    return message.sender, task


async def test_answer_reaches_the_one_who_asked_and_not_its_inbox(servers):
    bob_name = unique("bob")
    async with agents(servers, unique("alice"), bob_name) as (alice, bob), anyio.create_task_group() as tasks:
        seen, running = [], anyio.Event()

        def watch(progress):
            seen.append(progress)
            if progress.state is TaskState.RUNNING:
                running.set()

        async def respond():
            asker, task = await next_task(bob)
            assert (task.content, task.hops, task.timeout_seconds) == ("2 + 2?", 3, PATIENCE)
            await bob.send(asker, write_envelope(TaskReceived(request_id=task.request_id)))
            await bob.send(asker, write_envelope(TaskProgress(request_id=task.request_id, stage="started")))
            await running.wait()
            await bob.send(asker, write_envelope(TaskResponse(request_id=task.request_id, content="4")))
            await bob.send(asker, "something else")

        tasks.start_soon(respond)
        answer = await alice.request(bob_name, "2 + 2?", timeout=PATIENCE, hops=3, on_progress=watch)
        assert (answer.content, answer.peer) == ("4", bob.did)
        states = [progress.state for progress in seen]
        assert states[-1] is TaskState.RUNNING
        assert states == sorted(states, key=list(TaskState).index)  # one that lasts no time at all is not told
        message = await alice.receive()
        assert message.payload == "something else"


async def test_refusal_is_an_error_that_says_whose(servers):
    bob_name = unique("bob")
    async with agents(servers, unique("alice"), bob_name) as (alice, bob), anyio.create_task_group() as tasks:

        async def respond():
            asker, task = await next_task(bob)
            no = TaskResponse(request_id=task.request_id, content="not today", ok=False, error="busy")
            await bob.send(asker, write_envelope(no))

        tasks.start_soon(respond)
        with pytest.raises(TaskFailed) as failed:
            await alice.request(bob_name, "please", timeout=PATIENCE)
        assert (failed.value.peer, failed.value.error, failed.value.content) == (bob.did, "busy", "not today")


async def test_a_task_nobody_answers_says_how_far_it_came_and_is_called_off(servers):
    bob_name = unique("bob")
    async with agents(servers, unique("alice"), bob_name) as (alice, bob):
        tasks_taken = []

        async def take():
            tasks_taken.append(await next_task(bob))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take)
            with pytest.raises(TaskUnfinished) as unfinished:
                await alice.request(bob_name, "anybody?", timeout=2)
        assert unfinished.value.state is TaskState.DELIVERED
        _, task = tasks_taken[0]
        message = await bob.receive()
        assert read_envelope(message.payload) == TaskCancel(
            request_id=task.request_id,
            from_agent=alice.config.name,
            timestamp=read_envelope(message.payload).timestamp,
        )


async def test_a_cancelled_request_is_called_off(servers):
    bob_name = unique("bob")
    async with agents(servers, unique("alice"), bob_name) as (alice, bob):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(alice.request, bob_name, "never mind")
            _, task = await next_task(bob)
            tasks.cancel_scope.cancel()
        message = await bob.receive()
        cancel = read_envelope(message.payload)
        assert isinstance(cancel, TaskCancel)
        assert cancel.request_id == task.request_id


async def test_a_request_that_never_left_is_taken_back(servers):
    bob_name = unique("bob")
    async with agents(servers, unique("alice"), bob_name) as (alice, bob):
        await alice.resolve(bob_name)
        await alice.disconnect()
        with pytest.raises(TaskUnfinished) as unfinished:
            await alice.request(bob_name, "too late", timeout=0.2)
        assert unfinished.value.state is TaskState.QUEUED
        assert alice.undelivered() == []
        await alice.connect()
        await alice.send(bob_name, "in time")
        assert (await bob.receive()).payload == "in time"


async def test_an_answer_of_somebody_else_is_no_answer(servers):
    bob_name, eve_name = unique("bob"), unique("eve")
    async with agents(servers, unique("alice"), bob_name, eve_name) as (alice, bob, eve):
        async with anyio.create_task_group() as tasks:
            answers = []

            async def ask():
                answers.append(await alice.request(bob_name, "what?", timeout=PATIENCE))

            tasks.start_soon(ask)
            asker, task = await next_task(bob)
            forged = write_envelope(TaskResponse(request_id=task.request_id, content="forged"))
            await eve.send(asker, forged)
            taken = await alice.receive()  # it is in the inbox, as what it is: a message of eve's
            assert (taken.sender, taken.payload) == (eve.did, forged)
            await bob.send(asker, write_envelope(TaskResponse(request_id=task.request_id, content="true")))
        assert [answer.content for answer in answers] == ["true"]


async def test_an_answer_that_comes_too_late_is_in_the_inbox(servers):
    bob_name = unique("bob")
    async with agents(servers, unique("alice"), bob_name) as (alice, bob):
        with pytest.raises(TaskUnfinished):
            await alice.request(bob_name, "quick!", timeout=0.5)
        asker, task = await next_task(bob)
        late = write_envelope(TaskResponse(request_id=task.request_id, content="late"))
        await bob.send(asker, late)
        assert (await alice.receive()).payload == late


async def test_who_does_not_want_to_talk_refuses_the_task(servers):
    bob_name = unique("bob")
    async with (
        agents(servers, bob_name, knock_policy=refuse_everyone),
        agents(servers, unique("alice")) as (alice,),
    ):
        with pytest.raises(KnockRefused):
            await alice.request(bob_name, "please", timeout=PATIENCE)


async def test_a_timeout_that_is_none_is_refused(servers):
    async with agents(servers, unique("alice")) as (alice,):
        with pytest.raises(InvalidValue, match="positive number of seconds"):
            await alice.request("did:mesh:" + "0" * 32, "please", timeout=0)


async def test_gathered_answers_come_as_they_are_given_and_the_rest_at_the_deadline(servers):
    quick_name, silent_name = unique("quick"), unique("silent")
    async with agents(servers, unique("alice"), quick_name, silent_name) as (alice, quick, silent):
        async with anyio.create_task_group() as tasks:

            async def respond():
                asker, task = await next_task(quick)
                await quick.send(asker, write_envelope(TaskResponse(request_id=task.request_id, content="here")))

            tasks.start_soon(respond)
            gathering = alice.gather({silent_name: "one", quick_name: "two", "nobody-of-that-name": "three"}, timeout=3)
            results = [result async for result in gathering]
        by_peer = {result.peer: result for result in results}
        assert by_peer[quick_name].answer.content == "here"
        assert isinstance(by_peer[silent_name].failure, TaskUnfinished)
        assert by_peer["nobody-of-that-name"].answer is None
        assert results[-1].peer == silent_name
        await next_task(silent)


async def test_a_cancelled_gathering_ends_and_calls_everybody_off(servers):
    bob_name = unique("bob")
    async with agents(servers, unique("alice"), bob_name) as (alice, bob):
        gathering = alice.gather({bob_name: "one"})
        await next_task(bob)
        gathering.cancel()
        assert await gathering.results() == {}
        assert isinstance(read_envelope((await bob.receive()).payload), TaskCancel)


class Numbers:
    """A route that takes numbers, and fails on some."""

    def __init__(self):
        self.taken = []
        self.fails_on = None
        self.news = anyio.Event()

    def claims(self, sender, payload):
        return isinstance(payload, int)

    async def handle(self, message):
        if message.payload == self.fails_on:
            raise StoreError("not now")
        self.taken.append((message.payload, message.redelivered))
        self.news.set()
        self.news = anyio.Event()

    async def until(self, count):
        while len(self.taken) < count:
            await self.news.wait()


async def test_a_route_takes_what_it_claims_in_order_and_leaves_the_rest(servers):
    bob_name = unique("bob")
    async with agents(servers, unique("alice"), bob_name) as (alice, bob):
        numbers = Numbers()
        for payload in (1, "one", 2):
            await alice.send(bob_name, payload, wait="stored")
        bob.add_route(numbers)
        for payload in ("two", 3):
            await alice.send(bob_name, payload)
        await numbers.until(3)
        assert [number for number, _ in numbers.taken] == [1, 2, 3]
        assert [(await bob.receive()).payload for _ in range(2)] == ["one", "two"]


async def test_what_a_route_fails_on_comes_again_after_a_restart(servers, tmp_path):
    bob_name = unique("bob")
    config = {"relay_url": servers.relay, "registry_url": servers.registry}
    async with agents(servers, unique("alice")) as (alice,):
        numbers = Numbers()
        numbers.fails_on = 1
        async with MeshClient(ClientConfig(name=bob_name, store=tmp_path / "bob", **config)) as bob:
            bob.add_route(numbers)
            for payload in (1, 2):
                await alice.send(bob.did, payload)
            await numbers.until(1)
            assert numbers.taken == [(2, False)]
        again = Numbers()
        async with MeshClient(ClientConfig(name=bob_name, store=tmp_path / "bob", **config)) as bob:
            bob.add_route(again)
            await again.until(1)
            assert again.taken == [(1, True)]


async def test_receive_can_wait_for_somebody(servers):
    bob_name, carol_name = unique("bob"), unique("carol")
    async with agents(servers, unique("alice"), bob_name, carol_name) as (alice, bob, carol):
        await bob.send(alice.did, "from bob")
        await carol.send(alice.did, "from carol")
        assert (await alice.receive([carol_name])).payload == "from carol"
        assert (await alice.receive()).payload == "from bob"


async def test_peers_are_listed_with_what_waits_for_them(servers):
    bob_name = unique("bob")
    async with agents(servers, unique("alice"), bob_name) as (alice, bob):
        await alice.send(bob_name, "one")
        await (await bob.receive()).ack()
        await bob.send(alice.did, "two")
        await alice.receive()
        (peer,) = await alice.peers()
        assert (peer.did, peer.name, peer.verified) == (bob.did, bob_name, True)


async def test_a_blocking_program_asks_and_gathers(servers):
    bob_name = unique("bob")
    urls = {"relay_url": servers.relay, "registry_url": servers.registry}

    def ask():
        with BlockingMeshClient(ClientConfig(name=unique("alice"), **urls)) as alice:
            one = alice.request(bob_name, "one", timeout=PATIENCE)
            both = list(alice.gather({bob_name: "two", "nobody-of-that-name": "three"}, timeout=PATIENCE))
        return one.content, {result.peer: result.answer.content for result in both if result.answer}, len(both)

    async with agents(servers, bob_name) as (bob,), anyio.create_task_group() as tasks:

        async def respond():
            for content in ("first", "second"):
                asker, task = await next_task(bob)
                await bob.send(asker, write_envelope(TaskResponse(request_id=task.request_id, content=content)))

        tasks.start_soon(respond)
        assert await anyio.to_thread.run_sync(ask) == ("first", {bob_name: "second"}, 2)
