"""The command ``mesh`` as people and scripts meet it: real processes, real servers, and what it says when it fails."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import pty
import select
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trustme
from anyio.from_thread import start_blocking_portal
from websockets.sync.server import ServerConnection, serve

from tests.commands import MESH, Agent, Servers, environment, mesh_up, running

pytestmark = pytest.mark.slow

NOBODY = "did:mesh:00000000000000000000000000000000"


@pytest.fixture
def agent(servers: Servers, tmp_path: Path) -> Callable[[str], Agent]:
    """Agents by name, each with a home of its own; names are made unique, the registry serves all tests."""

    def make(name: str) -> Agent:
        unique = f"{name}-{tmp_path.name}"
        return Agent(tmp_path / name, {**servers.variables, "MESH_NAME": unique})

    return make


def name_of(agent: Agent) -> str:
    return agent.variables["MESH_NAME"]


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(one) for one in found.split()]


class TestUp:
    def test_serves_both_and_stops_both(self, tmp_path: Path) -> None:
        with mesh_up(tmp_path) as servers:
            relay = servers.relay.replace("ws://", "http://")
            for url in (relay, servers.registry):
                assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
            servers.process.signal(signal.SIGINT)
            assert servers.process.ended() == 0
            assert servers.process.rest("err") == []
            for url in (relay, servers.registry):
                with pytest.raises(httpx.ConnectError):
                    httpx.get(f"{url}/health", trust_env=False)

    def test_keeps_its_files_in_the_data_folder(self, tmp_path: Path) -> None:
        with mesh_up(tmp_path / "new" / "folder"):
            assert stat.S_IMODE((tmp_path / "new" / "folder").stat().st_mode) == 0o700
            assert {"relay.db", "registry.db"} <= {path.name for path in (tmp_path / "new" / "folder").iterdir()}

    @pytest.mark.parametrize("victim", [0, 1])
    def test_ends_when_one_server_dies(self, tmp_path: Path, victim: int) -> None:
        with mesh_up(tmp_path) as servers:
            children = children_of(servers.process.pid)
            assert len(children) == 2
            os.kill(children[victim], signal.SIGKILL)
            assert servers.process.ended() == 1
            (complaint,) = servers.process.rest("err")
            assert "ended by itself" in complaint
            for child in children:
                with pytest.raises(ProcessLookupError):
                    os.kill(child, 0)

    def test_servers_end_when_it_is_killed(self, tmp_path: Path) -> None:
        with mesh_up(tmp_path) as servers:
            watches = [os.pidfd_open(child) for child in children_of(servers.process.pid)]
            assert len(watches) == 2
            servers.process.signal(signal.SIGKILL)
            for watch in watches:
                assert wait_readable(watch)
                os.close(watch)

    def test_says_that_a_port_is_taken(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            argv: list[str | Path] = [*MESH, "up", "--data", tmp_path, "--registry-port", "0"]
            with running([*argv, "--relay-port", str(taken.getsockname()[1])]) as process:
                assert process.ended() == 1
                lines = process.rest("err")
                assert "the relay did not start" in lines[-1]
                assert not any("Traceback" in line for line in lines)

    def test_shows_people_how_to_point_agents_at_it(self, tmp_path: Path) -> None:
        argv: list[str | Path] = [*MESH, "up", "--data", tmp_path, "--relay-port", "0", "--registry-port", "0"]
        with running(argv) as process:
            text = [process.line()]
            while "export MESH_RELAY_URL=ws://127.0.0.1:" not in text[-1]:
                text.append(process.line())
            assert "MESH_REGISTRY_URL=http://127.0.0.1:" in text[-1]


def wait_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 20)[0])


class TestIdentity:
    def test_is_made_once(self, agent: Callable[[str], Agent]) -> None:
        alice = agent("alice")
        first = alice.mesh("identity", "create", "--json")
        again = alice.mesh("identity", "create", "--json")
        shown = alice.mesh("identity", "show", "--json")
        assert [one.code for one in (first, again, shown)] == [0, 0, 0]
        assert [one.lines[0].get("created") for one in (first, again, shown)] == [True, False, None]
        assert len({one.lines[0]["did"] for one in (first, again, shown)}) == 1

    def test_is_private(self, agent: Callable[[str], Agent]) -> None:
        store = Path(agent("alice").mesh("identity", "create", "--json").lines[0]["store"])
        assert stat.S_IMODE(store.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in store.iterdir()} == {0o600}

    def test_shows_no_private_key(self, agent: Callable[[str], Agent]) -> None:
        said = agent("alice").mesh("identity", "create", "--json").lines[0]
        assert set(said) == {"did", "public_key", "store", "name", "created"}

    def test_that_is_missing_is_not_made_by_showing_it(self, agent: Callable[[str], Agent]) -> None:
        alice = agent("alice")
        shown = alice.mesh("identity", "show")
        assert shown.code == 4
        assert "mesh identity create" in shown.complaint
        assert not alice.home.exists()

    def test_sealed_by_a_passphrase_opens_with_it_only(self, agent: Callable[[str], Agent], tmp_path: Path) -> None:
        right, wrong = tmp_path / "right", tmp_path / "wrong"
        right.write_text("correct horse\n")
        wrong.write_text("battery staple\n")
        alice = agent("alice")
        made = alice.mesh("identity", "create", "--json", "--passphrase-file", right)
        assert (
            alice.mesh("identity", "show", "--json", MESH_PASSPHRASE_FILE=str(right)).lines[0]["did"]
            == (made.lines[0]["did"])
        )
        for refused in (alice.mesh("identity", "show"), alice.mesh("identity", "show", "--passphrase-file", wrong)):
            assert refused.code == 4
            assert refused.complaint.startswith("mesh: ")


class TestMessages:
    def test_reach_a_listener_and_are_confirmed(self, agent: Callable[[str], Agent]) -> None:
        alice, bob = agent("alice"), agent("bob")
        with bob.listening("--count", "1") as listener:
            sent = alice.mesh("send", name_of(bob), "hello bob ✨", "--wait", "delivered", "--json")
            heard = listener.said()
            assert listener.ended() == 0
        assert sent.code == 0, sent.err
        assert sent.lines[0]["state"] == "delivered"
        assert heard["payload"] == "hello bob ✨"
        assert heard["id"] == sent.lines[0]["id"]
        assert heard["encrypted"]
        assert not heard["redelivered"]

    @pytest.mark.parametrize(
        ("arguments", "stdin", "expected"),
        [
            (["-"], b"from a pipe\n", {"payload": "from a pipe"}),
            ([], b"from a pipe\n\n", {"payload": "from a pipe\n"}),
            (["--json-payload", '{"n":[1,2.5,null]}'], b"", {"payload": {"n": [1, 2.5, None]}}),
            (["-"], b"\xff\x00\xfe", {"bytes": "/wD+"}),
            ([""], b"", {"payload": ""}),
            (["--timeout", "20", "after an option"], b"", {"payload": "after an option"}),
            (["--", "-1 degrees"], b"", {"payload": "-1 degrees"}),
        ],
    )
    def test_can_be_of_any_kind(
        self, agent: Callable[[str], Agent], arguments: list[str], stdin: bytes, expected: dict[str, object]
    ) -> None:
        alice, bob = agent("alice"), agent("bob")
        with bob.listening("--count", "1") as listener:
            sent = alice.mesh("send", name_of(bob), *arguments, stdin=stdin)
            assert sent.code == 0, sent.err
            heard = listener.said()
        assert {key: heard[key] for key in expected} == expected

    def test_can_be_a_file(self, agent: Callable[[str], Agent], tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.write_bytes(bytes(range(256)) * 100)
        alice, bob = agent("alice"), agent("bob")
        with bob.listening("--count", "1") as listener:
            assert alice.mesh("send", name_of(bob), "--file", file).code == 0
            assert len(listener.said()["bytes"]) == 4 * -(-25_600 // 3)

    def test_wait_for_an_absent_peer(self, agent: Callable[[str], Agent]) -> None:
        alice, bob = agent("alice"), agent("bob")
        with bob.listening():
            pass
        stored = alice.mesh("send", name_of(bob), "when you are back", "--wait", "stored", "--json")
        assert stored.code == 0, stored.err
        late = alice.mesh("send", name_of(bob), "and this", "--wait", "delivered", "--timeout", "1")
        assert late.code == 5
        assert "stays in the outbox" in late.complaint
        with bob.listening("--count", "2") as listener:
            assert [listener.said()["payload"], listener.said()["payload"]] == ["when you are back", "and this"]

    def test_that_nobody_could_read_come_again(self, agent: Callable[[str], Agent]) -> None:
        """The reader of our output dies before it has the message: it is not confirmed."""
        alice, bob = agent("alice"), agent("bob")
        with bob.listening():
            pass
        assert alice.mesh("send", name_of(bob), "important", "--wait", "stored").code == 0
        broken = subprocess.Popen([*MESH, "listen", "--json"], stdout=subprocess.PIPE, env=environment(**bob.env))
        assert broken.stdout is not None
        broken.stdout.close()
        assert broken.wait(60) == 141
        with bob.listening("--count", "1") as listener:
            again = listener.said()
        assert again["payload"] == "important"
        assert again["redelivered"]

    def test_cannot_rewrite_the_screen(self, agent: Callable[[str], Agent]) -> None:
        alice, bob = agent("alice"), agent("bob")
        evil = "\x1b[2J\x1b]0;owned\x07\u202etxt\n12:00:00  did:mesh:alice\r fake"
        with bob.starting("listen", "--count", "1") as listener:
            assert listener.line("err").startswith("listening as")
            assert alice.mesh("send", name_of(bob), evil).code == 0
            assert listener.ended() == 0
            lines = listener.rest("out")
        assert "\\x1b[2J" in lines[1]
        assert all(character.isprintable() for line in lines for character in line)
        assert [line[:10].isspace() for line in lines] == [False, *[True] * (len(lines) - 1)]

    def test_listener_stops_in_time(self, agent: Callable[[str], Agent]) -> None:
        quiet = agent("bob").mesh("listen", "--timeout", "0.2")
        assert quiet.code == 5
        assert quiet.err.splitlines()[-1] == "mesh: no message within 0.2 s"

    def test_interrupted_listener_leaves_no_traceback(self, agent: Callable[[str], Agent]) -> None:
        with agent("bob").listening() as listener:
            listener.signal(signal.SIGINT)
            assert listener.ended() == 130
            assert listener.rest("err") == []

    def test_strangers_can_be_kept_out(self, agent: Callable[[str], Agent]) -> None:
        alice, bob = agent("alice"), agent("bob")
        with bob.listening("--only", NOBODY):
            refused = alice.mesh("send", name_of(bob), "let me in", "--wait", "delivered")
        assert refused.code == 3
        assert "refused the knock" in refused.complaint


class TestRefusals:
    """Each ends with the status the documentation gives and one line that says what to do."""

    def test_unknown_name(self, agent: Callable[[str], Agent]) -> None:
        result = agent("alice").mesh("send", "nobody-of-that-name", "hello")
        assert result.code == 3
        assert "nobody-of-that-name" in result.complaint

    def test_unknown_did(self, agent: Callable[[str], Agent]) -> None:
        result = agent("alice").mesh("send", NOBODY, "hello")
        assert result.code == 3
        assert NOBODY in result.complaint

    def test_name_of_several_agents(self, servers: Servers, tmp_path: Path) -> None:
        name = f"twin-{tmp_path.name}"
        dids = set()
        for home in ("one", "other"):
            twin = Agent(tmp_path / home, {**servers.variables, "MESH_NAME": name})
            with twin.starting("listen", "--json") as listener:
                dids.add(listener.said("err")["did"])
        result = Agent(tmp_path / "alice", servers.variables).mesh("send", name, "hello")
        assert result.code == 3
        assert all(did in result.complaint for did in dids)

    @pytest.mark.parametrize(
        "options",
        [
            ["--relay", "http://127.0.0.1:1"],
            ["--registry", "ws://127.0.0.1:1"],
            ["--timeout", "never"],
            ["--wait", "for-godot"],
            ["--ca", "/nowhere/to/be/found"],
            ["--name", "a\nb"],
        ],
        ids=lambda options: options[0],
    )
    def test_wrong_option(self, agent: Callable[[str], Agent], options: list[str]) -> None:
        result = agent("alice").mesh("send", NOBODY, "hello", *options)
        assert result.code == 2
        assert result.complaint.startswith("mesh")

    @pytest.mark.parametrize(
        "arguments", [[], ["sing"], ["send"], ["identity"], ["up", "--relay-port", "70000"]], ids=" ".join
    )
    def test_wrong_call(self, agent: Callable[[str], Agent], arguments: list[str]) -> None:
        result = agent("alice").mesh(*arguments)
        assert result.code == 2
        assert "--help" in result.complaint

    @pytest.mark.parametrize(
        ("arguments", "stdin"),
        [(["--json-payload", "{"], b""), (["-"], b"x" * 600_000), ([], b""), (["text", "--file", "x"], b"")],
        ids=["no JSON", "too long", "nothing", "two messages"],
    )
    def test_impossible_message(self, agent: Callable[[str], Agent], arguments: list[str], stdin: bytes) -> None:
        result = agent("alice").mesh("send", NOBODY, *arguments, stdin=stdin)
        assert result.code in (2, 3)
        assert result.complaint.startswith("mesh: ")

    @pytest.mark.parametrize("option", ["--registry", "--relay"])
    def test_nobody_answers(self, agent: Callable[[str], Agent], option: str) -> None:
        scheme = {"--registry": "http", "--relay": "ws"}[option]
        address = f"127.0.0.1:{closed_port()}"
        result = agent("alice").mesh("send", NOBODY, "hello", "--timeout", "2", option, f"{scheme}://{address}")
        assert result.code == 1
        assert address in result.complaint

    def test_relay_says_no(self, agent: Callable[[str], Agent]) -> None:
        with refusing_relay(4005, "bad proof") as url:
            result = agent("alice").mesh("send", NOBODY, "hello", "--relay", url)
        assert result.code == 3
        assert "4005" in result.complaint

    def test_identity_is_in_use(self, agent: Callable[[str], Agent]) -> None:
        bob = agent("bob")
        with bob.listening() as listener:
            for command in (["identity", "show"], ["send", NOBODY, "hello"], ["listen"]):
                result = bob.mesh(*command)
                assert result.code == 4
                assert f"process {listener.pid}" in result.complaint

    def test_identity_taken_over_elsewhere_ends_the_listener(
        self, agent: Callable[[str], Agent], tmp_path: Path
    ) -> None:
        bob = agent("bob")
        assert bob.mesh("identity", "create").code == 0
        shutil.copytree(bob.home, tmp_path / "copy")
        copy = Agent(tmp_path / "copy", bob.variables)
        with bob.listening() as listener, copy.listening():
            assert listener.ended() == 3
            assert "one process per identity" in listener.rest("err")[-1]

    def test_damaged_store(self, agent: Callable[[str], Agent]) -> None:
        alice = agent("alice")
        store = Path(alice.mesh("identity", "create", "--json").lines[0]["store"])
        (store / "mesh.db").write_bytes(b"no database at all" * 1000)
        result = alice.mesh("send", NOBODY, "hello")
        assert result.code == 4
        assert str(store) in result.complaint

    def test_is_json_for_machines(self, agent: Callable[[str], Agent]) -> None:
        said = json.loads(agent("alice").mesh("send", "nobody-of-that-name", "hello", "--json").complaint)
        assert said["exit"] == 3
        assert said["error"] == "AgentNotFound"


@contextmanager
def refusing_relay(code: int, reason: str) -> Iterator[str]:
    def refuse(connection: ServerConnection) -> None:
        connection.recv(30)
        connection.close(code, reason)

    with serve(refuse, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


class TestDiscover:
    def test_finds_who_listens(self, agent: Callable[[str], Agent]) -> None:
        bob = agent("bob")
        with bob.starting("listen", "--json") as listener:
            did = listener.said("err")["did"]
            found = agent("alice").mesh("discover", name_of(bob), "--json")
        assert found.code == 0
        assert [one["did"] for one in found.lines] == [did]
        assert found.lines[0]["capabilities"] == [name_of(bob)]

    def test_makes_no_store(self, agent: Callable[[str], Agent]) -> None:
        alice = agent("alice")
        assert alice.mesh("discover", "nothing-at-all").code == 3
        assert not alice.home.exists()


class TestStatusAndDoctor:
    def test_all_is_well(self, agent: Callable[[str], Agent]) -> None:
        alice = agent("alice")
        assert alice.mesh("send", NOBODY, "to be registered").code == 3
        said = alice.mesh("status", "--json")
        assert said.code == 0
        assert said.lines[0]["relay"]["up"]
        assert said.lines[0]["registry"]["up"]
        assert said.lines[0]["identity"]["registered"].startswith("registered, ")
        steps = alice.mesh("doctor", "--json")
        assert steps.code == 0, steps.out
        walked = {(step["where"], step["what"]): step["outcome"] for step in steps.lines[0]["steps"]}
        assert set(walked.values()) == {"ok"}
        assert {("registry", "clock"), ("relay", "proof"), ("store", "permissions")} <= set(walked)

    def test_says_what_is_down(self, agent: Callable[[str], Agent]) -> None:
        alice = agent("alice")
        dead = f"ws://127.0.0.1:{closed_port()}"
        said = alice.mesh("status", "--json", "--relay", dead)
        assert said.code == 1
        assert [said.lines[0][role]["up"] for role in ("registry", "relay")] == [True, False]
        examined = alice.mesh("doctor", "--json", "--relay", dead)
        assert examined.code == 1
        failed = [step for step in examined.lines[0]["steps"] if step["outcome"] == "failed"]
        assert [(step["where"], step["what"]) for step in failed] == [("relay", "connection")]
        assert failed[0]["advice"]

    @pytest.mark.parametrize(
        ("relay", "step"),
        [
            ("ws://name.invalid:8083", "name"),
            ("registry's", "WebSocket"),
            ("TLS at the registry's", "TLS"),
            ("refusing", "proof"),
        ],
    )
    def test_names_the_step_that_fails(
        self, agent: Callable[[str], Agent], servers: Servers, relay: str, step: str
    ) -> None:
        alice = agent("alice")
        with refusing_relay(4003, "not you") as refusing:
            url = {
                "registry's": servers.registry.replace("http", "ws"),
                "TLS at the registry's": servers.registry.replace("http", "wss"),
                "refusing": refusing,
            }.get(relay, relay)
            examined = alice.mesh("doctor", "--json", "--relay", url, "--timeout", "3")
        assert examined.code == 1
        failed = [one["what"] for one in examined.lines[0]["steps"] if one["outcome"] == "failed"]
        assert failed == [step]

    def test_names_the_proxy_in_use(self, agent: Callable[[str], Agent]) -> None:
        proxy = f"http://127.0.0.1:{closed_port()}"
        examined = agent("alice").mesh("doctor", "--json", "--proxy", proxy)
        steps = {(one["where"], one["what"]): one for one in examined.lines[0]["steps"]}
        assert proxy in steps["relay", "proxy"]["detail"]
        assert steps["relay", "connection"]["outcome"] == "failed"

    def test_open_store_is_reported(self, agent: Callable[[str], Agent]) -> None:
        alice = agent("alice")
        store = Path(alice.mesh("identity", "create", "--json").lines[0]["store"])
        (store / "mesh.db").chmod(0o644)
        examined = alice.mesh("doctor", "--json")
        assert examined.code == 1
        failed = [one for one in examined.lines[0]["steps"] if one["outcome"] == "failed"]
        assert [one["what"] for one in failed] == ["permissions"]

    def test_does_not_disturb_the_running_agent(self, agent: Callable[[str], Agent]) -> None:
        alice, bob = agent("alice"), agent("bob")
        with bob.listening("--count", "1") as listener:
            assert bob.mesh("doctor").code == 0
            assert bob.mesh("status").code == 0
            assert alice.mesh("send", name_of(bob), "still there?").code == 0
            assert listener.ended() == 0
            assert listener.rest("err") == []


class TestTls:
    """Through a TLS terminator before both servers, as operations.md describes it."""

    def test_private_authority_is_trusted_when_it_is_named(
        self, agent: Callable[[str], Agent], servers: Servers, tmp_path: Path
    ) -> None:
        authority = trustme.CA()
        ca = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(ca)
        alice, bob = agent("alice"), agent("bob")
        with tls_before(servers.relay, authority) as relay, tls_before(servers.registry, authority) as registry:
            secure = ["--relay", f"wss://{relay}", "--registry", f"https://{registry}"]
            examined = alice.mesh("doctor", "--json", *secure, "--ca", ca)
            assert examined.code == 0, examined.out
            assert [one["detail"] for one in examined.lines[0]["steps"] if one["what"] == "TLS"] == ["TLSv1.3"] * 2
            with bob.listening("--count", "1") as listener:
                sent = alice.mesh("send", name_of(bob), "over TLS", *secure, MESH_CA=str(ca))
                assert sent.code == 0, sent.err
                assert listener.said()["payload"] == "over TLS"

    def test_unknown_authority_is_named_as_the_reason(self, agent: Callable[[str], Agent], servers: Servers) -> None:
        alice = agent("alice")
        with tls_before(servers.relay, trustme.CA()) as relay:
            secure = ["--relay", f"wss://{relay}"]
            examined = alice.mesh("doctor", "--json", *secure)
            refused = alice.mesh("send", NOBODY, "hello", *secure, "--timeout", "2")
        assert [one["what"] for one in examined.lines[0]["steps"] if one["outcome"] == "failed"] == ["TLS"]
        assert "--ca" in str(examined.lines[0]["steps"])
        assert refused.code == 1
        assert "not trusted" in refused.complaint


@contextmanager
def tls_before(url: str, authority: trustme.CA) -> Iterator[str]:
    """``host:port`` of a TLS terminator that passes everything on to the server at ``url``."""
    host, port = url.partition("://")[2].split(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pipe(reader, inner_writer), pipe(inner_reader, writer))

    with start_blocking_portal("asyncio") as portal:
        server = portal.call(functools.partial(asyncio.start_server, serve, "127.0.0.1", 0, ssl=context))
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        portal.call(server.close)


class TestTerminal:
    def test_colours_only_on_a_terminal_that_wants_them(self, agent: Callable[[str], Agent]) -> None:
        alice = agent("alice")
        assert "\x1b[" in on_terminal(alice, TERM="xterm")
        assert "\x1b[" not in on_terminal(alice, TERM="xterm", NO_COLOR="1")
        assert "\x1b[" not in on_terminal(alice, TERM="dumb")
        assert "\x1b[" not in alice.mesh("status").out

    def test_poor_locale_changes_characters_but_not_the_outcome(self, agent: Callable[[str], Agent]) -> None:
        alice, bob = agent("alice"), agent("bob")
        with bob.starting("listen", "--count", "1", PYTHONIOENCODING="ascii") as listener:
            listener.line("err")
            assert alice.mesh("send", name_of(bob), "für 💌").code == 0
            assert listener.ended() == 0
            assert listener.rest("out")[1].strip() == "f\\xfcr \\U0001f48c"


def on_terminal(agent: Agent, **env: str) -> str:
    """What ``mesh status`` writes to a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*MESH, "status"], stdout=theirs, env=environment(**agent.env | env))
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 65_536):
            written += chunk
    except OSError:  # how Linux says that the other side has closed the terminal
        pass
    finally:
        os.close(ours)
    assert process.wait(60) == 0
    return written.decode()


class TestOptions:
    def test_old_names_of_the_environment_are_understood(self, servers: Servers, tmp_path: Path) -> None:
        name = f"kars-{tmp_path.name}"
        aliases = {"AGT_RELAY_URL": servers.relay, "AGT_REGISTRY_URL": servers.registry, "SANDBOX_NAME": name}
        with Agent(tmp_path / "bob", aliases).listening() as _:
            found = Agent(tmp_path / "alice", servers.variables).mesh("discover", name, "--json")
        assert len(found.lines) == 1

    def test_stand_before_or_after_the_command(self, agent: Callable[[str], Agent]) -> None:
        alice = agent("alice")
        before, after = alice.mesh("--json", "status"), alice.mesh("status", "--json")
        assert before.lines[0].keys() == after.lines[0].keys()

    @pytest.mark.parametrize("command", ["", "up", "identity create", "send", "listen", "discover", "status", "doctor"])
    def test_help_tells_what_the_exit_status_means(self, agent: Callable[[str], Agent], command: str) -> None:
        shown = agent("alice").mesh(*command.split(), "--help")
        assert shown.code == 0
        assert "exit status: 0 done, 1 not reachable" in shown.out
