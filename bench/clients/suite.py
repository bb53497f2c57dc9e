"""The client cases and who takes part in them."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench import machine, peers, servers
from bench.clients import crowd
from bench.measures import OURS, Case, Contender, Run
from bench.plan import Plan, Turns
from interop.processes import ROOT, environment

SDK, AGT, IN_MEMORY = "TypeScript SDK", "AGT Python", "ours, in memory"

STACKS = {
    "through AGT's relay": (servers.AGT_RELAY, servers.AGT_REGISTRY),
    # The SDK on npm proves nothing, so our servers have to be told to admit it.
    "through our relay": (servers.OUR_RELAY_LEGACY, servers.OUR_REGISTRY_LEGACY),
}
OUR_CLIENT: tuple[str | Path, ...] = (sys.executable, "-m", "bench.clients.ours")


def _popen(argv: Sequence[str | Path], **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(part) for part in argv],
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: machine.pin(machine.LOAD_CORE),
        **more,
    )


def _result(line: str, argv: Sequence[str | Path]) -> Run:
    if not line:
        raise RuntimeError(f"no result from {argv[:3]!r}")
    said = json.loads(line)
    return Run(said.pop("value"), said)


def talk(
    client: Sequence[str | Path], stack: tuple[servers.Program, servers.Program], plan: Plan, *, durable: bool
) -> Run:
    """Messages per second between two clients of one process."""
    with (
        servers.running(stack[0]) as relay,
        servers.running(stack[1]) as registry,
        tempfile.TemporaryDirectory(dir=peers.CACHE) as folder,
    ):
        asked = {
            **{"task": "talk", "relay": f"127.0.0.1:{relay.port}", "registry": f"127.0.0.1:{registry.port}"},
            **{"folder": folder if durable else None, "messages": plan.messages, "payload": 256},
        }
        argv = [*client, json.dumps(asked)]
        with _popen(argv) as process:
            output, _ = process.communicate(timeout=180)
        return _result(output, argv)


def peers_memory(plan: Plan) -> Run:
    """MiB of one client that has a session with each of many peers."""
    with (
        servers.running(servers.OUR_RELAY) as relay,
        servers.running(servers.OUR_REGISTRY) as registry,
        tempfile.TemporaryDirectory(dir=peers.CACHE) as folder,
    ):
        asked = {
            **{"task": "hub", "relay": f"127.0.0.1:{relay.port}", "registry": f"127.0.0.1:{registry.port}"},
            **{"folder": folder, "messages": plan.peers},
        }
        argv = [*OUR_CLIENT, json.dumps(asked)]
        with _popen(argv) as process:
            assert process.stdout is not None
            try:
                crowd.visit(json.loads(process.stdout.readline())["did"], plan.peers, relay.port, registry.port)
                return _result(process.stdout.readline(), argv)
            finally:
                process.terminate()


def start(argv: Sequence[str | Path]) -> Run:
    """Milliseconds of CPU a program takes from start to end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([str(part) for part in argv], cwd=ROOT, env=environment(), check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Run((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000)


def start_server(program: servers.Program) -> Run:
    """Milliseconds from starting a server to its first answer."""
    with servers.running(program) as server:
        return Run(server.started_in * 1000)


def run(plan: Plan, turns: Turns) -> None:
    """Measure everything here."""
    node, agt = peers.node(), peers.agt_python()
    for through, stack in STACKS.items():
        if agt is None and "AGT" in through:
            continue
        contenders: dict[str, Contender] = {
            OURS: partial(talk, OUR_CLIENT, stack, plan, durable=True),
            IN_MEMORY: partial(talk, OUR_CLIENT, stack, plan, durable=False),
        }
        if node is not None:
            contenders[SDK] = partial(talk, [node, "bench/clients/sdk.mjs"], stack, plan, durable=False)
        case = Case("client", "client to client", {"payload": 256, "path": through}, "messages/s", True, {SDK: 4.0})
        turns(case, contenders)
    turns(
        Case("client", "memory of a client", {"peers": plan.peers}, "MiB", False),
        {OURS: partial(peers_memory, plan)},
        1,
    )
    imports: dict[str, Contender] = {
        OURS: partial(start, [sys.executable, "-c", "from meshlib import MeshClient"]),
        "Python alone": partial(start, [sys.executable, "-c", "pass"]),
    }
    if agt is not None:
        imports[AGT] = partial(start, [agt, "-c", "import agentmesh"])
    if node is not None:
        sdk = "require('./interop/node_modules/@microsoft/agent-governance-sdk')"
        imports[SDK] = partial(start, [node, "-e", sdk])
        imports["node alone"] = partial(start, [node, "-e", ""])
    turns(Case("client", "import", {}, "ms of CPU", False), imports)
    turns(
        Case("client", "command line", {"command": "mesh --version"}, "ms of CPU", False),
        {OURS: partial(start, [sys.executable, "-m", "meshlib", "--version"])},
    )
    for kind, pair in (
        ("relay", (servers.OUR_RELAY, servers.AGT_RELAY)),
        ("registry", (servers.OUR_REGISTRY, servers.AGT_REGISTRY)),
    ):
        started: Mapping[str, Contender] = {
            name: partial(start_server, program) for name, program in zip((OURS, "AGT"), pair, strict=True)
        }
        turns(Case("client", "server start", {"server": kind}, "ms", False), started)
