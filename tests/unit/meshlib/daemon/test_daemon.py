"""A daemon and its clients on both event loops, with real sockets, servers and processes."""

import os
import signal
import socket
import stat
import sys
import tempfile
import threading
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import anyio
import pytest

from meshlib import (
    AgentNotFound,
    BlockingDaemonClient,
    ClientConfig,
    DaemonClient,
    DaemonNotRunning,
    DeliveryState,
    InvalidValue,
    KnockRefused,
    Mesh,
    MeshClient,
    QueueFull,
    StoreError,
    TaskFailed,
    TaskState,
    TaskUnfinished,
    TransferFailed,
    TransportError,
    UsageError,
    refuse_everyone,
)
from meshlib.client.verbs import PeerSummary
from meshlib.daemon.address import SOCKET_FILE, is_ours, socket_path
from meshlib.daemon.protocol import MAX_LINE, Called, Hello, Returned, decode, encode
from meshlib.daemon.server import CALLS, CONNECTIONS, PEERS, serve_daemon
from meshlib.daemon.values import Receive
from meshlib.identity import Did
from meshlib.wire.envelopes import (
    Artifact,
    TaskCancel,
    TaskProgress,
    TaskRequest,
    TaskResponse,
    Telemetry,
    read_envelope,
    write_envelope,
)
from tests.commands import running

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PATIENCE = 30


def unique(name):
    return f"{name}-{uuid.uuid4().hex[:8]}"


@asynccontextmanager
async def agent(servers, name, store=None, **options):
    """A client; its own store is on the disk, so that messages count as delivered before anybody confirms them."""
    with tempfile.TemporaryDirectory() as folder:
        urls = {"relay_url": servers.relay, "registry_url": servers.registry}
        async with MeshClient(ClientConfig(name=name, store=store or folder, **urls, **options)) as client:
            yield client


@asynccontextmanager
async def daemon(servers, folder, name=None, **options):
    """A daemon of an agent on the store ``folder``; yields the path of its socket."""
    async with agent(servers, name or unique("daemon"), folder, **options) as client, serve_daemon(client) as served:
        yield served.path


class Host:
    """A daemon in a task of its own, so that clients can outlive it."""

    def __init__(self, servers, folder, name):
        self._options = servers, folder, name
        self._stop, self._ended = anyio.Event(), anyio.Event()

    async def run(self, *, task_status):
        async with daemon(*self._options) as path:
            task_status.started(path)
            await self._stop.wait()
        self._ended.set()

    async def stop(self):
        self._stop.set()
        await self._ended.wait()


@asynccontextmanager
async def clients(path, count):
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(DaemonClient(path)) for _ in range(count)]


async def in_thread(function, *arguments, **named):
    return await anyio.to_thread.run_sync(partial(function, *arguments, **named), abandon_on_cancel=True)


async def next_task(client):
    message = await client.receive()
    await message.ack()
    task = read_envelope(message.payload)
    assert isinstance(task, TaskRequest)
    return message.sender, task


class TestVerbs:
    async def test_daemon_client_is_a_mesh(self, servers, tmp_path):
        async with daemon(servers, tmp_path / "store") as path, DaemonClient(path) as client:
            mesh: Mesh = client
            assert mesh.did.startswith("did:mesh:")

    @pytest.mark.parametrize("payload", ["text", "für 💌", "\ud800", b"\xff\x00", {"a": [1, None, 2.5]}, "ü" * 250_000])
    async def test_messages_go_both_ways_as_they_are(self, servers, tmp_path, payload):
        bob_name = unique("bob")
        async with (
            daemon(servers, tmp_path / "store") as path,
            agent(servers, bob_name) as bob,
            DaemonClient(path) as alice,
        ):
            receipt = await alice.send(bob_name, payload, message_id="mine-1")
            assert (receipt.id, receipt.peer) == ("mine-1", bob.did)
            assert await receipt.wait("delivered") is DeliveryState.DELIVERED
            message = await bob.receive()
            assert message.payload == payload
            await bob.send(alice.did, payload)
            answer = await alice.receive([bob_name])
            assert (answer.sender, answer.payload, answer.redelivered) == (bob.did, payload, False)
            await answer.ack()
            await answer.ack()

    async def test_agents_are_found(self, servers, tmp_path):
        bob_name = unique("bob")
        async with (
            daemon(servers, tmp_path / "store") as path,
            agent(servers, bob_name) as bob,
            DaemonClient(path) as alice,
        ):
            assert await alice.resolve(bob_name) == bob.did
            (found,) = await alice.discover(bob_name)
            assert (found.did, found.capabilities, found.online) == (bob.did, (bob_name,), True)
            assert await alice.peers() == []
            await alice.send(bob_name, "hello", wait="delivered")
            (known,) = await alice.peers()
            assert (known.did, known.name, known.undelivered) == (bob.did, bob_name, 0)

    async def test_however_many_peers_there_are_the_last_ones_fit_a_line(self, servers, tmp_path, monkeypatch):
        everybody = [
            PeerSummary(Did(f"did:mesh:{number:032x}"), "\U0001f600" * 200, True, 0) for number in range(60_000)
        ]

        async def peers(client):
            return everybody

        monkeypatch.setattr(MeshClient, "peers", peers)
        async with daemon(servers, tmp_path / "store") as path, DaemonClient(path) as alice:
            assert await alice.peers() == everybody[:PEERS]

    async def test_errors_are_of_the_same_type_with_the_same_facts(self, servers, tmp_path):
        async with daemon(servers, tmp_path / "store") as path, DaemonClient(path) as alice:
            nobody = unique("nobody")
            with pytest.raises(AgentNotFound, match=nobody) as failure:
                await alice.send(nobody, "hello")
            assert failure.value.agent == nobody
            somebody = "did:mesh:" + "0" * 32
            with pytest.raises(InvalidValue, match="2\\*\\*53"):
                await alice.send(somebody, 2**60 + 1)
            for impossible in (object(), {1: 2}, {"bytes": b"inside"}, nested(600)):
                with pytest.raises(InvalidValue, match="JSON"):
                    await alice.send(somebody, impossible)
            with pytest.raises(InvalidValue, match="one can wait for"):
                await alice.send(somebody, "x", wait="eaten")

    async def test_refusal_reaches_who_waits(self, servers, tmp_path):
        bob_name = unique("bob")
        async with (
            daemon(servers, tmp_path / "store") as path,
            agent(servers, bob_name, knock_policy=refuse_everyone),
            DaemonClient(path) as alice,
        ):
            receipt = await alice.send(bob_name, "hello")
            with pytest.raises(KnockRefused):
                await receipt.wait()

    async def test_status_says_how_the_daemon_is(self, servers, tmp_path):
        name = unique("daemon")
        async with daemon(servers, tmp_path / "store", name) as path, clients(path, 2) as (first, _):
            said = await first.status()
            assert (said.did, said.name, said.connected, said.pid) == (first.did, name, True, os.getpid())
            assert "receipts" in said.features
            assert (said.connections, said.undelivered) == (2, 0)

    async def test_stopping_is_up_to_who_runs_it(self, servers, tmp_path):
        async with daemon(servers, tmp_path / "store") as path, DaemonClient(path) as alice:
            with pytest.raises(UsageError, match=str(os.getpid())):
                await alice.stop()
        asked = anyio.Event()
        async with (
            agent(servers, unique("daemon"), tmp_path / "store") as client,
            serve_daemon(client, on_stop=asked.set) as served,
            DaemonClient(served.path) as alice,
        ):
            await alice.stop()
            assert asked.is_set()


class TestRequests:
    async def test_answer_and_progress_arrive(self, servers, tmp_path):
        bob_name = unique("bob")
        async with (
            daemon(servers, tmp_path / "store") as path,
            agent(servers, bob_name) as bob,
            DaemonClient(path) as alice,
            anyio.create_task_group() as tasks,
        ):
            running = anyio.Event()

            def see(progress):
                if progress.state is TaskState.RUNNING:
                    running.set()

            async def respond():
                asker, task = await next_task(bob)
                assert (task.content, task.hops) == ("2 + 2?", 3)
                await bob.send(asker, write_envelope(TaskProgress(request_id=task.request_id, tick=1)))
                await running.wait()
                done = TaskResponse(
                    request_id=task.request_id,
                    content="4",
                    artifacts=(Artifact("a.txt", "/a.txt", 3),),
                    telemetry=Telemetry(1, 2, 3, 4, 5),
                )
                await bob.send(asker, write_envelope(done))

            tasks.start_soon(respond)
            answer = await alice.request(bob_name, "2 + 2?", timeout=PATIENCE, hops=3, on_progress=see)
            assert (answer.peer, answer.content, answer.artifacts) == (bob.did, "4", (Artifact("a.txt", "/a.txt", 3),))
            assert answer.telemetry == Telemetry(1, 2, 3, 4, 5)

    async def test_cancelled_request_is_called_off_at_the_peer(self, servers, tmp_path):
        bob_name = unique("bob")
        async with (
            daemon(servers, tmp_path / "store") as path,
            agent(servers, bob_name) as bob,
            DaemonClient(path) as alice,
        ):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(alice.request, bob_name, "anybody?")
                _, task = await next_task(bob)
                tasks.cancel_scope.cancel()
            message = await bob.receive()
            cancel = read_envelope(message.payload)
            assert isinstance(cancel, TaskCancel)
            assert cancel.request_id == task.request_id

    async def test_requests_of_a_process_that_ends_are_called_off(self, servers, tmp_path):
        bob_name = unique("bob")
        async with daemon(servers, tmp_path / "store") as path, agent(servers, bob_name) as bob:
            code = "from meshlib import BlockingDaemonClient as C; C({!r}).request({!r}, 'anybody?')"
            with running([sys.executable, "-c", code.format(str(path), bob_name)]) as process:
                _, task = await next_task(bob)
                process.signal(signal.SIGKILL)
            cancel = read_envelope((await bob.receive()).payload)
            assert isinstance(cancel, TaskCancel)
            assert cancel.request_id == task.request_id

    async def test_unfinished_task_says_how_far_it_came(self, servers, tmp_path):
        bob_name = unique("bob")
        async with (
            daemon(servers, tmp_path / "store") as path,
            agent(servers, bob_name),
            DaemonClient(path) as alice,
        ):
            with pytest.raises(TaskUnfinished) as unfinished:
                await alice.request(bob_name, "anybody?", timeout=1)
            assert unfinished.value.state == TaskState.DELIVERED

    async def test_gathering_yields_answers_and_failures(self, servers, tmp_path):
        bob_name, nobody = unique("bob"), unique("nobody")
        async with (
            daemon(servers, tmp_path / "store") as path,
            agent(servers, bob_name) as bob,
            DaemonClient(path) as alice,
            anyio.create_task_group() as tasks,
        ):

            async def respond():
                for text in ("one", "two"):
                    asker, task = await next_task(bob)
                    ok = TaskResponse(request_id=task.request_id, content=text, ok=text == "one", error=None)
                    await bob.send(asker, write_envelope(ok))

            tasks.start_soon(respond)
            results = await alice.gather({bob_name: "?", nobody: "?"}, timeout=PATIENCE).results()
            assert results[bob_name].answer.content == "one"
            assert isinstance(results[nobody].failure, AgentNotFound)
            blocking = BlockingDaemonClient(path)
            again = await in_thread(lambda: list(blocking.gather({bob_name: "?"}, timeout=PATIENCE)))
            assert isinstance(again[0].failure, TaskFailed)
            assert again[0].failure.content == "two"
            blocking.close()


class TestFiles:
    async def test_daemon_reads_and_sends_a_file(self, servers, tmp_path):
        bob_name, incoming = unique("bob"), tmp_path / "incoming"
        (tmp_path / "report.bin").write_bytes(os.urandom(700_000))
        async with (
            daemon(servers, tmp_path / "store") as path,
            agent(servers, bob_name, incoming=incoming),
            DaemonClient(path) as alice,
        ):
            seen = []
            receipt = await alice.send_file(
                bob_name, tmp_path / "report.bin", on_progress=lambda one: seen.append(one.moved)
            )
            with anyio.fail_after(PATIENCE):
                assert await receipt.wait() == "done"
            assert seen[-1] == receipt.size == 700_000
            assert (incoming / receipt.saved_to).read_bytes() == (tmp_path / "report.bin").read_bytes()

            def plugin():
                with BlockingDaemonClient(path) as client:
                    sending = client.send_file(bob_name, tmp_path / "report.bin")
                    return sending.wait(PATIENCE), sending.saved_to

            state, saved_to = await in_thread(plugin)
            assert state == "done"
            assert (incoming / saved_to).exists()
            with pytest.raises(InvalidValue):
                await alice.send_file(bob_name, tmp_path / "no such file")

    async def test_file_that_is_not_wanted_fails(self, servers, tmp_path):
        bob_name = unique("bob")
        (tmp_path / "report.bin").write_bytes(b"x")
        async with (
            daemon(servers, tmp_path / "store") as path,
            agent(servers, bob_name) as bob,
            DaemonClient(path) as alice,
        ):
            receipt = await alice.send_file(bob_name, tmp_path / "report.bin")
            await bob.disconnect()
            await receipt.cancel()
            with pytest.raises(TransferFailed) as failed, anyio.fail_after(PATIENCE):
                await receipt.wait()
            assert failed.value.reason == "cancelled"


class TestMessages:
    async def test_each_goes_to_one_of_several_receivers(self, servers, tmp_path):
        async with (
            daemon(servers, tmp_path / "store") as path,
            agent(servers, unique("bob")) as bob,
            clients(path, 3) as receivers,
        ):
            got = []
            enough = anyio.Event()

            async def take(client):
                while True:
                    message = await client.receive()
                    got.append(message.payload)
                    await message.ack()
                    if len(got) == 30:
                        enough.set()

            async with anyio.create_task_group() as tasks:
                for client in receivers:
                    tasks.start_soon(take, client)
                for number in range(30):
                    await bob.send(receivers[0].did, number)
                with anyio.fail_after(PATIENCE):
                    await enough.wait()
                tasks.cancel_scope.cancel()
            assert sorted(got) == list(range(30))

    async def test_what_a_connection_did_not_confirm_goes_to_the_next_in_order(self, servers, tmp_path):
        async with daemon(servers, tmp_path / "store") as path, agent(servers, unique("bob")) as bob:
            async with DaemonClient(path) as first:
                for number in range(4):
                    await bob.send(first.did, number, wait="delivered")
                taken = [await first.receive() for _ in range(3)]
                await taken[1].ack()
            async with DaemonClient(path) as second:
                got = [await second.receive() for _ in range(3)]
                assert [(message.payload, message.redelivered) for message in got] == [
                    (0, True),
                    (2, True),
                    (3, False),
                ]

    async def test_process_that_is_killed_loses_no_message(self, servers, tmp_path):
        async with daemon(servers, tmp_path / "store") as path, agent(servers, unique("bob")) as bob:
            code = (
                "import sys; from meshlib import BlockingDaemonClient as C; c = C(sys.argv[1]); m = c.receive();"
                "print(m.payload, flush=True); sys.stdin.close(); c.receive()"
            )
            with running([sys.executable, "-c", code, path]) as process:
                async with DaemonClient(path) as client:
                    await bob.send(client.did, "precious")
                    assert await in_thread(process.line) == "precious"
                    process.signal(signal.SIGKILL)
                    message = await client.receive()
            assert (message.payload, message.redelivered) == ("precious", True)

    async def test_one_that_gives_up_waiting_takes_none(self, servers, tmp_path):
        async with (
            daemon(servers, tmp_path / "store") as path,
            agent(servers, unique("bob")) as bob,
            clients(path, 2) as (impatient, patient),
        ):
            taken = []

            async def take():
                message = await impatient.receive()
                taken.append(message.payload)
                with anyio.CancelScope(shield=True):
                    await message.ack()

            for number in range(20):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(take)
                    receipt = await bob.send(patient.did, number)
                    if number % 2:
                        await receipt.wait()
                    tasks.cancel_scope.cancel()
                if number not in taken:
                    with anyio.fail_after(PATIENCE):
                        message = await patient.receive()
                    assert message.payload == number
                    await message.ack()

    async def test_given_back_goes_to_another(self, servers, tmp_path):
        async with (
            daemon(servers, tmp_path / "store") as path,
            agent(servers, unique("bob")) as bob,
            clients(path, 2) as (first, second),
        ):
            await bob.send(first.did, "not for me")
            message = await first.receive()
            await message.give_back()
            assert (await second.receive()).payload == "not for me"

    async def test_senders_are_told_apart(self, servers, tmp_path):
        async with (
            daemon(servers, tmp_path / "store") as path,
            agent(servers, unique("bob")) as bob,
            agent(servers, unique("carol")) as carol,
            DaemonClient(path) as alice,
        ):
            await bob.send(alice.did, "from bob", wait="delivered")
            await carol.send(alice.did, "from carol", wait="delivered")
            assert (await alice.receive([carol.did])).payload == "from carol"
            assert (await alice.receive()).payload == "from bob"


class TestBlocking:
    async def test_plugins_use_the_same_verbs(self, servers, tmp_path):
        bob_name = unique("bob")
        async with daemon(servers, tmp_path / "store") as path, agent(servers, bob_name) as bob:

            def plugin():
                with BlockingDaemonClient(path) as alice:
                    assert alice.receive(timeout=0.05) is None
                    receipt = alice.send(bob_name, b"\xff", wait="delivered")
                    assert (receipt.peer, receipt.state, receipt.wait()) == (bob.did, "delivered", "delivered")
                    assert alice.resolve(bob_name) == alice.discover(bob_name)[0].did == alice.peers()[0].did == bob.did
                    with pytest.raises(AgentNotFound):
                        alice.resolve(unique("nobody"))
                    message = alice.receive(timeout=PATIENCE, senders=[bob_name])
                    message.ack()
                    return alice.did, message.payload

            async with anyio.create_task_group() as tasks:

                async def answer():
                    message = await bob.receive()
                    await bob.send(message.sender, {"you said": "\udfff"})
                    assert message.payload == b"\xff"

                tasks.start_soon(answer)
                _, payload = await in_thread(plugin)
            assert payload == {"you said": "\udfff"}

    async def test_threads_share_a_client(self, servers, tmp_path):
        async with daemon(servers, tmp_path / "store") as path:

            def plugin():
                with BlockingDaemonClient(path) as client:
                    results = []
                    calls = [threading.Thread(target=lambda: results.append(client.status().did)) for _ in range(20)]
                    for call in calls:
                        call.start()
                    for call in calls:
                        call.join(PATIENCE)
                    assert results == [client.did] * 20

            await in_thread(plugin)

    async def test_time_that_is_over_is_a_timeout(self, servers, tmp_path):
        bob_name = unique("bob")
        async with agent(servers, bob_name) as bob:
            await bob.disconnect()
            async with daemon(servers, tmp_path / "store") as path:

                def plugin():
                    with BlockingDaemonClient(path) as client, pytest.raises(TimeoutError):
                        client.send(bob_name, "hello", wait="delivered", timeout=0.3)

                await in_thread(plugin)


class TestLife:
    async def test_nobody_listening_is_an_error_of_its_own(self, tmp_path):
        with pytest.raises(DaemonNotRunning, match="mesh daemon"):
            async with DaemonClient(tmp_path / SOCKET_FILE):
                pass
        with pytest.raises(DaemonNotRunning), BlockingDaemonClient(tmp_path / "no folder" / SOCKET_FILE):
            pass
        left_behind(tmp_path / SOCKET_FILE)
        with pytest.raises(DaemonNotRunning):
            async with DaemonClient(tmp_path / SOCKET_FILE):
                pass

    async def test_socket_a_killed_daemon_left_is_replaced(self, servers, tmp_path):
        store = tmp_path / "store"
        store.mkdir(0o700)
        left_behind(socket_path(store))
        async with daemon(servers, store) as path, DaemonClient(path) as client:
            assert (await client.status()).connected
        assert not path.exists()

    async def test_socket_of_somebody_else_stays(self, servers, tmp_path):
        tmp_path.chmod(0o700)
        left_behind(tmp_path / "other.sock")
        (tmp_path / "file").write_text("not a socket")
        async with agent(servers, unique("daemon"), tmp_path / "store") as client:
            for taken in ("other.sock", "file"):
                with pytest.raises(StoreError, match="is there already"):
                    async with serve_daemon(client, tmp_path / taken):
                        pass
                assert (tmp_path / taken).exists()

    async def test_clients_go_on_with_the_next_daemon(self, servers, tmp_path):
        store, name = tmp_path / "store", unique("daemon")
        blocking = BlockingDaemonClient(socket_path(store))
        async with agent(servers, unique("bob")) as bob, anyio.create_task_group() as tasks:
            first = Host(servers, store, name)
            path = await tasks.start(first.run)
            async with DaemonClient(path) as client:
                did = client.did
                assert await in_thread(lambda: blocking.did) == did
                await bob.send(did, "hello", wait="delivered")
                message = await client.receive()
                await first.stop()
                with pytest.raises(DaemonNotRunning):
                    await client.status()
                with pytest.raises(DaemonNotRunning):
                    await in_thread(blocking.status)
                second = Host(servers, store, name)
                await tasks.start(second.run)
                assert (await client.status()).did == did
                assert (await in_thread(blocking.status)).did == did
                with pytest.raises(TransportError):
                    await message.ack()
                again = await client.receive()
                assert (again.payload, again.redelivered) == ("hello", True)
                await again.ack()
                await second.stop()
        blocking.close()

    async def test_calls_that_wait_are_told_that_the_daemon_stops(self, servers, tmp_path):
        failures = []

        async def wait(client):
            try:
                await client.receive()
            except TransportError as error:
                failures.append(str(error))

        async with anyio.create_task_group() as tasks:
            host = Host(servers, tmp_path / "store", unique("daemon"))
            async with DaemonClient(await tasks.start(host.run)) as client, anyio.create_task_group() as waiting:
                waiting.start_soon(wait, client)
                await anyio.wait_all_tasks_blocked()
                with anyio.fail_after(PATIENCE):
                    await host.stop()
                    await client.gone()
        assert failures == ["the daemon is stopping: start it again, then ask it again"]

    async def test_long_paths_work(self, servers, tmp_path):
        store = tmp_path / ("deep" * 30) / "store"
        assert len(str(store)) > 120
        async with daemon(servers, store) as path, DaemonClient(path) as client:
            assert (await in_thread(lambda: BlockingDaemonClient(path).status().did)) == client.did
        assert not path.exists()

    async def test_client_without_a_store_names_a_path(self, servers, tmp_path):
        config = ClientConfig(name=unique("daemon"), relay_url=servers.relay, registry_url=servers.registry)
        async with MeshClient(config) as client:
            with pytest.raises(UsageError, match="path"):
                serve_daemon(client)
            tmp_path.chmod(0o700)
            async with serve_daemon(client, tmp_path / "chosen.sock") as served, DaemonClient(served.path) as other:
                assert other.did == client.did


class TestGuards:
    async def test_socket_and_folder_are_ours_only(self, servers, tmp_path):
        async with daemon(servers, tmp_path / "store") as path:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    async def test_open_folder_is_refused(self, servers, tmp_path):
        (tmp_path / "open").mkdir(0o755)
        async with agent(servers, unique("daemon")) as client:
            with pytest.raises(StoreError, match="chmod 700"):
                async with serve_daemon(client, tmp_path / "open" / SOCKET_FILE):
                    pass

    async def test_other_users_are_turned_away(self, servers, tmp_path):
        if os.getuid() != 0:
            return  # only root can become somebody else
        async with daemon(servers, tmp_path / "store") as path:
            for folder in (path.parent, *path.parent.parents[:-2]):
                folder.chmod(0o755)  # somebody loosened what should hold
            path.chmod(0o666)
            code = (
                "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX);"
                "s.connect(sys.argv[1]); print(s.recv(100), flush=True)"
            )
            with running([sys.executable, "-c", code, path]) as process:
                assert await in_thread(process.line) == "b''"

    async def test_client_trusts_no_other_users_socket(self, tmp_path):
        if os.getuid() != 0:
            return
        tmp_path.chmod(0o777)
        for folder in tmp_path.parents[:-2]:
            folder.chmod(0o755)
        code = (
            "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]);"
            "s.listen(); os.chmod(sys.argv[1], 0o666); print('up', flush=True); s.accept()[0].recv(1)"
        )
        path = tmp_path / "theirs.sock"
        with running([sys.executable, "-c", code, path]) as process:
            assert await in_thread(process.line) == "up"
            with pytest.raises(TransportError, match="another user"):
                await in_thread(BlockingDaemonClient(path).status)

    @pytest.mark.parametrize(
        "raw",
        [b"GET / HTTP/1.1\r\n", b"[]\n", b'{"call":1}' + b"x" * MAX_LINE, b"\xff\n", b'{"call":-1}\n', b"[" * 9999],
    )
    async def test_what_is_no_client_is_hung_up_on(self, servers, tmp_path, raw):
        async with daemon(servers, tmp_path / "store") as path, DaemonClient(path) as client:
            async with await anyio.connect_unix(path) as stream:
                assert isinstance(decode(await stream.receive()), Hello)
                with anyio.move_on_after(PATIENCE):
                    try:
                        await stream.send(raw + b"\n")
                        await stream.receive()
                    except (anyio.EndOfStream, anyio.BrokenResourceError):
                        pass
                    else:
                        raise AssertionError("it was answered")
            assert (await client.status()).connections == 1

    async def test_verb_that_is_unknown_is_answered(self, servers, tmp_path):
        async with daemon(servers, tmp_path / "store") as path, await anyio.connect_unix(path) as stream:
            await stream.receive()
            await stream.send(b'{"call":7,"verb":"dance","with":{}}\n{"call":8,"verb":"resolve","with":{"peer":7}}\n')
            said = b""
            while said.count(b"\n") < 2:
                said += await stream.receive()
            frames = [decode(line) for line in said.splitlines()]
            assert [(frame.id, frame.type) for frame in frames] == [(7, "InvalidValue"), (8, "InvalidValue")]

    async def test_calls_under_way_are_bounded(self, servers, tmp_path):
        async with daemon(servers, tmp_path / "store") as path, await anyio.connect_unix(path) as stream:
            await stream.receive()
            for number in range(CALLS + 1):
                await stream.send(encode(Called(number, Receive())))
            refused = decode(await stream.receive())
            assert (refused.id, type(refused.error)) == (CALLS, QueueFull)

    async def test_idle_connections_make_room_and_busy_ones_do_not(self, servers, tmp_path):
        async with daemon(servers, tmp_path / "store") as path, clients(path, CONNECTIONS) as connected:
            async with DaemonClient(path) as one_more:
                assert (await one_more.status()).did
                await connected[0].gone()
            assert (await connected[0].status()).did  # it connects again
            async with anyio.create_task_group() as tasks:
                for client in connected:
                    tasks.start_soon(client.receive)
                for client in connected:
                    await client.status()
                with pytest.raises(QueueFull, match=str(CONNECTIONS)):
                    async with DaemonClient(path):
                        pass
                tasks.cancel_scope.cancel()

    async def test_reader_that_takes_nothing_holds_up_nobody(self, servers, tmp_path):
        async with (
            daemon(servers, tmp_path / "store") as path,
            agent(servers, unique("bob")) as bob,
            DaemonClient(path) as client,
            await anyio.connect_unix(path) as stuck,
        ):
            for number in range(20):
                await bob.send(client.did, [number, "x" * 300_000])
                await stuck.send(encode(Called(number, Receive())))
            assert (await client.status()).connected
            await stuck.aclose()
            with anyio.fail_after(PATIENCE):
                got = [(await client.receive()).payload[0] for _ in range(20)]
            assert sorted(got) == list(range(20))

    @pytest.mark.parametrize(
        ("greeting", "complaint"),
        [
            (encode(Hello(99, "did:mesh:x")), "speaks version 99"),
            (b"220 mail.example ESMTP\r\n", "does not greet as a daemon"),
            (encode(Returned(1, None)), "does not greet as a daemon"),
            (b"", "hung up"),
        ],
    )
    async def test_daemon_that_is_not_ours_is_named(self, tmp_path, greeting, complaint):
        path = tmp_path / SOCKET_FILE

        async def greet(stream):
            async with stream:
                if greeting:
                    await stream.send(greeting)

        async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, greet)
            with pytest.raises(TransportError, match=complaint):
                async with DaemonClient(path):
                    pass
            with pytest.raises(TransportError, match=complaint):
                await in_thread(BlockingDaemonClient(path).status)
            tasks.cancel_scope.cancel()

    async def test_peer_of_another_user_is_told_apart(self):
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        with ours, theirs:
            assert is_ours(ours)
            assert not is_ours(ours, os.getuid() + 1)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def left_behind(path):
    """What a daemon that was killed leaves."""
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
