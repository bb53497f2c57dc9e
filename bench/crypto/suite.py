"""The crypto cases and who takes part in them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from bench import machine, peers
from bench.measures import OURS, Case, Run
from bench.plan import Plan, Turns
from interop.processes import ROOT, environment

AGT, SDK, OLM, SYNDACE, FLOOR = "AGT Python", "TypeScript SDK", "vodozemac", "DoubleRatchet", "floor"


class Worker:
    """One library in its own process, on a core that nobody else uses."""

    def __init__(self, argv: list[str | Path]) -> None:
        self._process = subprocess.Popen(
            [str(part) for part in argv],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: machine.pin(machine.LOAD_CORE),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def measure(self, task: str, seconds: float, parameters: Mapping[str, Any]) -> Run:
        """Have a task repeated for a while."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"task": task, "seconds": seconds, **parameters}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a worker has ended: {self._process.args!r}")
        return Run(json.loads(answer)["rate"])


def libraries() -> dict[str, list[str | Path]]:
    """Command lines by contender; a library that is not there is left out."""
    found: dict[str, list[str | Path]] = {OURS: [sys.executable, "-m", "bench.crypto.ours"]}
    if (agt := peers.agt_python()) is not None:
        found[AGT] = [agt, "-m", "bench.crypto.agt"]
    if (node := peers.node()) is not None:
        found[SDK] = [node, "bench/crypto/sdk.mjs"]
    if (others := peers.peers_python()) is not None:
        found[OLM] = [others, "-m", "bench.crypto.olm"]
        found[SYNDACE] = [others, "-m", "bench.crypto.syndace"]
    found[FLOOR] = [sys.executable, "-m", "bench.crypto.floor"]
    return found


_MESSAGE_REACH = {256: {AGT: 1.25, FLOOR: 0.8}, 4096: {AGT: 1.2}, 65536: {AGT: 1.2}}


def cases(plan: Plan) -> Iterator[tuple[str, Case]]:
    """The task of each case, and the case."""
    for payload in plan.payloads:
        reach = _MESSAGE_REACH[payload]
        yield "seal", Case("crypto", "seal and open", {"payload": payload}, "messages/s", reach=reach)
    yield "turn", Case("crypto", "message and answer", {"payload": 256}, "pairs/s", reach={OLM: 1.2})
    yield "meet", Case("crypto", "session set-up, both sides", {}, "sessions/s", reach={AGT: 1.1})


def run(plan: Plan, turns: Turns) -> None:
    """Measure everything here."""
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(argv)) for name, argv in libraries().items()}
        for task, case in cases(plan):
            able = {name: worker for name, worker in workers.items() if (task, name) != ("meet", SYNDACE)}
            turns(
                case,
                {
                    name: lambda worker=worker, task=task, case=case: worker.measure(  # type: ignore[misc]
                        task, plan.seconds / 2, case.parameters
                    )
                    for name, worker in able.items()
                },
            )
