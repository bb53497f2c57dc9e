"""Where our programs spend their time: ``python -m bench.profile docs/benchmarks.json`` adds it to the figures."""

from __future__ import annotations

import json
import pstats
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from bench import peers, registry, relay, servers
from bench.clients import suite as clients
from bench.crypto.suite import Worker
from bench.plan import FULL
from interop.processes import ROOT

SHOWN = 10
_FILE = peers.CACHE / "profile"
_PROFILER: tuple[str | Path, ...] = (sys.executable, "-m", "cProfile", "-o", _FILE, "-m")


def _profiled(program: servers.Program) -> servers.Program:
    """The same server under the profiler; ``python -m`` and what follows becomes ``python -m cProfile ... -m``."""
    return servers.Program(lambda port, folder: [*_PROFILER, *program.argv(port, folder)[2:]])


def _relay(measure: Callable[[relay.Relay], object]) -> None:
    measure(relay.Relay(_profiled(servers.OUR_RELAY)))


def _crypto(task: str, parameters: Mapping[str, int]) -> None:
    with Worker([*_PROFILER, "bench.crypto.ours"]) as worker:
        worker.measure(task, 1.0, parameters)


def _talk() -> None:
    stack = (servers.OUR_RELAY, servers.OUR_REGISTRY)
    clients.talk([*_PROFILER, "bench.clients.ours"], stack, FULL, durable=True)


def profiles() -> dict[str, Callable[[], None]]:
    """What is profiled, by title."""
    pairs = relay.Pattern.pairs(8)
    return {
        "seal and open, 256 B": partial(_crypto, "seal", {"payload": 256}),
        "session set-up": partial(_crypto, "meet", {}),
        "relay, 8 pairs, 256 B": partial(_relay, partial(relay.throughput, pattern=pairs, payload=256, seconds=2.0)),
        "relay, connects": partial(_relay, partial(relay.connects, count=2000)),
        "relay, one deep inbox": partial(_relay, partial(relay.backlog, recipients=1, each=50_000)),
        "registry, registration": lambda: _ignore(registry.register(_profiled(servers.OUR_REGISTRY), 3000)),
        "two clients in one process": _talk,
    }


def _ignore(_: object) -> None:
    pass


def shares() -> list[tuple[str, float]]:
    """The functions of the last profile with the most own time, and their shares of all; waiting left out."""
    stats = pstats.Stats(str(_FILE)).stats  # type: ignore[attr-defined]
    own = {where: values[2] for where, values in stats.items() if not _waits(where)}
    total = sum(own.values())
    ordered = sorted(own.items(), key=lambda item: -item[1])[:SHOWN]
    return [(_spell(where), round(seconds / total, 3)) for where, seconds in ordered]


def _waits(where: tuple[str, int, str]) -> bool:
    return where[0] == "~" and ("'poll'" in where[2] or "acquire" in where[2] or "sleep" in where[2])


def _spell(where: tuple[str, int, str]) -> str:
    path, _, name = where
    if path == "~":
        return f"`{name.strip('<>{}').removeprefix('built-in method ')}`"
    place = path.removeprefix(f"{ROOT}/").rpartition("site-packages/")[2]
    return f"`{'/'.join(place.split('/')[-2:])}:{name}`"


def main(figures: Path) -> None:
    """Profile everything and write it into the file of the benchmarks."""
    found = {}
    for title, measure in profiles().items():
        measure()
        found[title] = shares()
        print(title, *(f"{name} {share:.0%}" for name, share in found[title]), sep="\n  ", flush=True)
    said = json.loads(figures.read_text())
    figures.write_text(json.dumps(said | {"profiles": found}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
