"""The responder against real servers, on both event loops."""

import json
import os
import threading
import uuid
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest

from meshlib import AgentNotFound, ClientConfig, MeshClient, StoreError, TaskFailed, TaskState, TaskUnfinished
from meshlib.responder import Policy, Responder, respond
from meshlib.responder.journal import MemoryJournal
from meshlib.responder.runtimes.function import as_runtime
from meshlib.responder.runtimes.protocol import Done, Failed
from meshlib.wire.envelopes import Pong, TaskRequest, TaskResponse, read_envelope, write_envelope

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PATIENCE = 30


def unique(name):
    return f"{name}-{uuid.uuid4().hex[:8]}"


@asynccontextmanager
async def agents(servers, *names, **options):
    urls = {"relay_url": servers.relay, "registry_url": servers.registry}
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(MeshClient(ClientConfig(name=name, **urls, **options))) for name in names
        ]


@asynccontextmanager
async def answering(servers, runtime, **options):
    """A parent, and an analyst that answers it with ``runtime``."""
    name = unique("analyst")
    async with agents(servers, unique("parent"), name) as (parent, analyst), anyio.create_task_group() as tasks:
        policy = Policy(tasks_from=(parent.did,), **{"grace": 0.1, **options})
        tasks.start_soon(lambda: respond(analyst, runtime, policy=policy))
        yield parent, analyst
        tasks.cancel_scope.cancel()


async def test_five_lines_make_an_agent_that_answers(servers):
    async with answering(servers, lambda task: task.content.upper()) as (parent, analyst):
        answer = await parent.request(analyst.did, "loud", timeout=PATIENCE)
        assert answer.content == "LOUD"


@pytest.mark.parametrize("kind", ["Point", "task_response", "task_request"])
async def test_a_task_about_json_with_a_type_is_a_task(servers, kind):
    async with answering(servers, lambda task: task.content) as (parent, analyst):
        content = json.dumps({"type": kind, "content": "x"})
        assert (await parent.request(analyst.did, content, timeout=PATIENCE)).content == content


async def test_a_coroutine_function_answers_as_well(servers):
    async def work(task):
        await anyio.sleep(0)
        return Done(f"{task.sender_name} asked", artifacts=())

    async with answering(servers, work) as (parent, analyst):
        answer = await parent.request(analyst.did, "who?", timeout=PATIENCE)
        assert answer.content == f"{parent.config.name} asked"


@pytest.mark.parametrize("returned", ["", "  \n", None, 7, Failed("the model is gone", "at 10.0.0.7: key xyz")])
async def test_no_answer_is_a_failure_that_tells_the_peer_nothing_of_ours(servers, returned):
    async with answering(servers, lambda task: returned) as (parent, analyst):
        with pytest.raises(TaskFailed) as failed:
            await parent.request(analyst.did, "?", timeout=PATIENCE)
        assert failed.value.error == "failed"
        assert "10.0.0.7" not in failed.value.content


async def test_thoughts_of_any_runtime_stay_here_and_so_do_those_in_reasons(servers):
    kept = []
    runtime = {
        "answer": "<think>the key is 4711</think>42",
        "reason": Failed("<think>the key is 4711</think>the model is gone"),
        "nothing else": Done("<think>the key is 4711"),
    }
    name = unique("analyst")
    async with (
        agents(servers, unique("parent"), name) as (parent, analyst),
        Responder(
            analyst,
            as_runtime(lambda task: runtime[task.content]),
            Policy(everyone=True),
            keep_reasoning=lambda *thought: kept.append(thought),
        ),
    ):
        assert (await parent.request(name, "answer", timeout=PATIENCE)).content == "42"
        for content, told in (("reason", "the model is gone"), ("nothing else", "the agent gave an empty answer")):
            with pytest.raises(TaskFailed) as failed:
                await parent.request(name, content, timeout=PATIENCE)
            assert failed.value.content == told
    assert [thought for _, thought in kept] == ["the key is 4711"] * 3


async def test_files_of_what_becomes_no_answer_are_removed(servers, tmp_path):
    spool, elsewhere = tmp_path / "spool", tmp_path / "elsewhere"
    files = (spool / "one" / "file", elsewhere / "file")
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text("x")
    name = unique("analyst")
    async with (
        agents(servers, unique("parent"), name) as (parent, analyst),
        Responder(analyst, as_runtime(lambda task: Done(" ", artifacts=files)), Policy(everyone=True), spool=spool),
    ):
        files[0].parent.mkdir(exist_ok=True)
        files[0].write_text("x")
        with pytest.raises(TaskFailed):
            await parent.request(name, "?", timeout=PATIENCE)
        assert [file.exists() for file in files] == [False, True]


async def test_what_a_runtime_raises_is_no_answer(servers, caplog):
    def work(task):
        raise RuntimeError("secret path")

    async with answering(servers, work) as (parent, analyst):
        with pytest.raises(TaskFailed) as failed:
            await parent.request(analyst.did, "?", timeout=PATIENCE)
        assert "secret" not in failed.value.content
        assert "secret path" in caplog.text  # the operator sees it


@pytest.mark.parametrize("answer", ["x\ud800y", "\u4e2d" * 200_000], ids=["half a pair", "three bytes each"])
async def test_any_text_is_an_answer_that_arrives(servers, tmp_path, answer):
    name = unique("analyst")
    async with (
        agents(servers, unique("parent")) as (parent,),
        agents(servers, name, store=tmp_path / name) as (analyst,),
        Responder(analyst, as_runtime(lambda task: answer), Policy(everyone=True)),
    ):
        arrived = (await parent.request(name, "?", timeout=PATIENCE)).content
    assert arrived == "x\ufffdy" or arrived.startswith("\u4e2d" * 100_000)


async def test_an_answer_whose_files_are_none_is_a_failure_and_no_end_of_the_responder(servers):
    runtime = {"first": Done("see the file", artifacts=(42,)), "second": Done("42")}
    async with answering(servers, lambda task: runtime[task.content]) as (parent, analyst):
        with pytest.raises(TaskFailed) as failed:
            await parent.request(analyst.did, "first", timeout=PATIENCE)
        assert failed.value.error == "failed"
        assert (await parent.request(analyst.did, "second", timeout=PATIENCE)).content == "42"


async def test_a_file_whose_name_is_no_text_is_no_end_of_the_responder(servers, tmp_path):
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    file.write_text("x")
    name, parent_name = unique("analyst"), unique("parent")
    async with agents(servers, parent_name) as (parent,), agents(servers, name, store=tmp_path / name) as (analyst,):
        runtime = {"first": Done("see the file", artifacts=(file,)), "second": Done("42")}
        async with Responder(analyst, as_runtime(lambda task: runtime[task.content]), Policy(everyone=True)):
            with suppress(TaskFailed):
                answer = await parent.request(name, "first", timeout=PATIENCE)
                assert [artifact.name for artifact in answer.artifacts] == ["caf_.txt"]
            assert (await parent.request(name, "second", timeout=PATIENCE)).content == "42"


async def test_a_journal_that_fails_in_its_own_way_ends_the_responder(servers):
    class Broken(MemoryJournal):
        def save(self, changes):
            raise UnicodeEncodeError("utf-8", "x", 0, 1, "surrogates not allowed")

    name = unique("analyst")
    async with (
        agents(servers, unique("parent"), name) as (parent, analyst),
        Responder(analyst, AlwaysFortyTwo(), Policy(tasks_from=(parent.did,)), journal=Broken()) as responder,
    ):
        await parent.send(analyst.did, "what is 6 times 7?")
        with pytest.raises(StoreError), anyio.fail_after(PATIENCE):
            await responder.wait()


async def test_a_task_that_takes_too_long_is_stopped_and_said_to_be(servers):
    stopped = anyio.Event()

    async def work(task):
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()

    async with answering(servers, work, timeout=0.3) as (parent, analyst):
        with pytest.raises(TaskFailed) as failed:
            await parent.request(analyst.did, "?", timeout=PATIENCE)
        assert failed.value.error == "timeout"
        assert stopped.is_set()


async def test_who_stops_waiting_stops_the_work(servers):
    started, stopped = anyio.Event(), anyio.Event()

    async def work(task):
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()

    async with answering(servers, work) as (parent, analyst):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(parent.request, analyst.did, "?")
            await started.wait()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(PATIENCE):
            await stopped.wait()


async def test_what_is_no_task_is_in_the_agents_own_inbox(servers):
    async with answering(servers, lambda task: "answer") as (parent, analyst):
        await parent.send(analyst.did, {"note": 1})
        await parent.send(analyst.did, {"type": "mesh:ping", "nonce": "n1"})
        await parent.send(analyst.did, "a question in plain words")
        assert (await analyst.receive()).payload == {"note": 1}
        received = [read_envelope((await parent.receive()).payload) for _ in range(4)]
        assert Pong in [type(one) for one in received]
        assert [one.content for one in received if isinstance(one, TaskResponse)] == ["answer"]


async def test_a_stranger_is_told_and_the_model_is_not(servers):
    ran = threading.Event()
    async with (
        agents(servers, unique("stranger")) as (stranger,),
        answering(servers, lambda task: ran.set() or "x") as (_, analyst),
    ):
        with pytest.raises(TaskFailed) as failed:
            await stranger.request(analyst.did, "?", timeout=PATIENCE)
        assert failed.value.error == "refused"
        assert not ran.is_set()


async def test_who_may_give_tasks_must_be_somebody(servers):
    async with agents(servers, unique("analyst")) as (analyst,):
        with pytest.raises(AgentNotFound):
            await respond(analyst, lambda task: "x", tasks_from=("nobody-of-that-name",))


async def test_a_journal_that_cannot_be_written_ends_the_responder(servers):
    class Full(MemoryJournal):
        def save(self, changes):
            raise StoreError("no space left on device")

    name = unique("analyst")
    async with (
        agents(servers, unique("parent"), name) as (parent, analyst),
        Responder(analyst, AlwaysFortyTwo(), Policy(tasks_from=(parent.did,)), journal=Full()) as responder,
    ):
        with pytest.raises(TaskUnfinished):
            await parent.request(analyst.did, "?", timeout=2)
        with pytest.raises(StoreError), anyio.fail_after(PATIENCE):
            await responder.wait()


class AlwaysFortyTwo:
    name = "42"

    async def run(self, task):
        return Done("42")


async def test_a_task_outlives_the_responder(servers, tmp_path):
    """Waiting for its turn when the first responder ends, answered by the second one."""
    name = unique("analyst")
    urls = {"relay_url": servers.relay, "registry_url": servers.registry}
    config = ClientConfig(name=name, store=tmp_path / "analyst", **urls)
    blocked = anyio.Event()

    class Busy:
        name = "busy"

        async def run(self, task):
            blocked.set()
            await anyio.sleep_forever()

    async with agents(servers, unique("parent")) as (parent,), anyio.create_task_group() as tasks:
        results = {}

        async def ask(content):
            try:
                results[content] = (await parent.request(name, content, timeout=PATIENCE)).content
            except TaskFailed as failed:
                results[content] = failed.error

        policy = Policy(tasks_from=(parent.did,), concurrency=1, grace=0.05)
        async with MeshClient(config) as analyst, Responder(analyst, Busy(), policy) as responder:
            tasks.start_soon(ask, "first")
            await blocked.wait()
            seen = anyio.Event()

            async def ask_second():
                def watch(progress):
                    if progress.state is TaskState.RECEIVED:
                        seen.set()

                results["second"] = (await parent.request(name, "second", timeout=PATIENCE, on_progress=watch)).content

            tasks.start_soon(ask_second)
            await seen.wait()
            responder.stop()
            await responder.wait()
        async with MeshClient(config) as analyst, Responder(analyst, AlwaysFortyTwo(), policy):
            with anyio.fail_after(PATIENCE):
                while len(results) < 2:
                    await anyio.sleep(0.01)
    assert results == {"first": "lost", "second": "42"}


async def test_files_on_their_way_outlive_the_responder_that_noted_them(servers, tmp_path, monkeypatch):
    """The spool has a relative name, and the requester is away when one responder ends and another begins."""
    monkeypatch.chdir(tmp_path)
    file = Path("spool/one/chart.svg")
    file.parent.mkdir(parents=True)
    requester_gone = anyio.Event()

    async def draw(task):
        file.write_bytes(bytes(2_000_000))
        await requester_gone.wait()
        return Done("see the chart", artifacts=(file,))

    def responder():
        return Responder(analyst, as_runtime(draw), Policy(everyone=True), spool=Path("spool"))

    parent_name, name = unique("parent"), unique("analyst")
    async with agents(servers, name, store=tmp_path / name) as (analyst,):
        async with responder():
            async with agents(servers, parent_name) as (parent,):
                request = write_envelope(TaskRequest(request_id="r1", content="draw"))
                await parent.send(analyst.did, request, wait="delivered")
            requester_gone.set()
        async with responder():
            assert [receipt.path for receipt in analyst.transfers()] == [file.absolute()]
            assert file.exists()


async def test_two_responders_that_pass_everything_on_come_to_an_end(servers):
    """Each asks the other whatever it is asked; hops end it."""
    runs = []
    one_name, other_name = unique("one"), unique("other")
    async with agents(servers, unique("parent"), one_name, other_name) as (parent, one, other):

        def passing_on(client, peer):
            async def work(task):
                runs.append(task.hops)
                answer = await client.request(peer, task.content, timeout=PATIENCE, hops=task.hops + 1)
                return answer.content

            return work

        async with anyio.create_task_group() as tasks:
            policy = Policy(everyone=True, grace=0.1)
            tasks.start_soon(lambda: respond(one, passing_on(one, other.did), policy=policy))
            tasks.start_soon(lambda: respond(other, passing_on(other, one.did), policy=policy))
            with pytest.raises(TaskFailed):
                await parent.request(one.did, "round and round", timeout=PATIENCE)
            tasks.cancel_scope.cancel()
    assert len(runs) <= 2 * policy.concurrency <= policy.max_hops


async def test_two_responders_do_not_answer_each_others_answers(servers):
    one_name, other_name = unique("one"), unique("other")
    runs = []
    async with agents(servers, one_name, other_name) as (one, other), anyio.create_task_group() as tasks:
        policy = Policy(everyone=True, grace=0.1)
        tasks.start_soon(lambda: respond(one, lambda task: runs.append(task) or "one", policy=policy))
        tasks.start_soon(lambda: respond(other, lambda task: runs.append(task) or "other", policy=policy))
        await one.send(other.did, "hello, who are you?")
        while True:
            message = await one.receive()
            await message.ack()
            if isinstance(read_envelope(message.payload), TaskResponse):
                break
        await one.send(other.did, {"flush": 1})
        assert (await other.receive()).payload == {"flush": 1}
        assert len(runs) == 1
        tasks.cancel_scope.cancel()
