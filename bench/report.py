"""docs/benchmarks.md and its pictures from what was measured: ``python -m bench.report docs/benchmarks.json docs``.

Figures are never typed by hand: the page is a function of the JSON file, which a test holds it to.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import peers
from bench.measures import OURS, Measure
from bench.terminal import number, remark

PICTURES = {
    "throughput": "Messages per second against payload, 8 pairs, with acks",
    "latency": "Latency percentiles against load, 32 pairs, 256 B",
    "memory": "Memory of a relay against idle connections",
    "growth": "Cost as agents and waiting messages grow",
}

_INTRODUCTION = """\
# Benchmarks

Made by `make bench` from [benchmarks.json](benchmarks.json); edit `bench/report.py`, not this page. Absolute figures
are those of one machine on one day. What counts are the ratios: everybody is measured on the same machine in the same
run, in turns (A B A B), and a ratio is the median over the rounds.

AGT is `agentmesh-platform` 3.7.0 from PyPI: its relay and registry keep everything in memory and check no proofs of
possession. The TypeScript SDK is `@microsoft/agent-governance-sdk` 4.0.0. Ours are as installed: durable SQLite, proofs
checked, receipts to the sender.
"""

_METHOD = """\
## How it is measured
- Every run has a fresh server process with an empty store on a real disk. Server and load have a core each. All
  traffic stays on 127.0.0.1.
- The load is one epoll loop over raw sockets; frames are joined from prebuilt parts, and all messages of one size
  have one length, so that nothing is parsed. When it has no time left while the server has, the result is marked ▲:
  the server could do more.
- Lost, doubled and reordered messages are counted in every run, by a number in each message id. `python -m bench`
  fails if there are any.
- Throughput keeps a window of messages per pair under way and counts what arrives in the steady state. Recipients
  acknowledge every message unless the case says otherwise.
- Latency is taken at fixed rates from the moment a message *was due*, not from when it was sent: a message that waits
  behind a slow one is late, too (no coordinated omission). A load that falls behind its own schedule is marked ▲.
- Connects per second count agents that are bound: a message to themselves has come back. Ours have signed the relay's
  challenge, and it has verified that; AGT 3.7.0 verifies nothing.
- Mail is drained by recipients that are connected up to their proof. Ten thousand with ten messages each are the
  reconnect storm's, connections and proofs included: both relays give a socket ten seconds for its first frame.
- Cryptography is measured per second of CPU, each library in its own process. "floor" is the bare primitives, called
  from Python.
- The spread is half the distance between the best and the worst run. Ratios above 1 mean that ours does better,
  whether more or less is better.
"""

_TITLES = {
    "crypto": "Cryptography",
    "relay": "Relay",
    "queues": "What one would take instead of a relay",
    "registry": "Registry",
    "client": "Client",
}
_ABOUT = {
    "queues": (
        "Brokers with one durable queue per recipient; publishers count the broker's confirmations, recipients",
        "acknowledge each message. None of them proves identities, encrypts end to end or speaks the SDK's wire.",
        "Ours is on disk within milliseconds; JetStream writes a file and syncs it every two minutes; mosquitto",
        "(QoS 1, persistent sessions) saves when it ends; AGT forgets.",
        "",
    )
}


def page(said: dict[str, Any], notes: str) -> str:
    """The whole page. ``notes`` is what people have to say about the figures, in Markdown."""
    measures = [Measure.from_json(one) for one in said["measures"]]
    parts = [_INTRODUCTION, _summary(measures)]
    if notes:
        parts.append(notes)
    for group, title in _TITLES.items():
        mine = [measure for measure in measures if measure.case.group == group]
        if mine:
            parts.append(_section(group, title, mine))
    if said.get("profiles"):
        parts.append(_profiles(said["profiles"]))
    return "\n".join([*parts, _METHOD, _machine(said["about"])])


def _summary(measures: Sequence[Measure]) -> str:
    rows = [
        (
            measure.case.title,
            other,
            f"{measure.ratio(other):.2f}x",
            f"{wanted:g}x",
            "yes" if measure.reached(other) else "**no**",
        )
        for measure in measures
        for other, wanted in measure.case.reach.items()
        if measure.reached(other) is not None
    ]
    reached = sum(row[-1] == "yes" for row in rows)
    faults = sum(run.faults for measure in measures for run in measure.runs.get(OURS, ()))
    lines = [
        "## In short",
        f"{reached} of {len(rows)} ratios are where we want them. Of our messages and answers, {faults or 'none'} were",
        "lost, doubled, out of order or wrong.",
        "",
        *_table(("case", "against", "ours is", "wanted", "reached"), rows),
    ]
    return "\n".join([*lines, ""])


def _section(group: str, title: str, measures: Sequence[Measure]) -> str:
    lines = [f"## {title}", *_ABOUT.get(group, ())]
    pictures = {"relay": ("throughput", "latency", "memory", "growth")}.get(group, ())
    timed = [measure for measure in measures if measure.case.name == "latency"]
    plain = [measure for measure in measures if measure not in timed]
    for picture in pictures:
        lines += [f"![{PICTURES[picture]}](pictures/{picture}.svg)", ""]
    lines += _table(("case", "who", "median", "spread", "ours is", "CPU each"), _rows(plain))
    if timed:
        lines += ["", "### Latency", "From when a message was due, in milliseconds.", ""]
        lines += _table(("messages/s", "who", "p50", "p90", "p99", "CPU each"), _latencies(timed))
    return "\n".join([*lines, ""])


def _rows(measures: Iterable[Measure]) -> Iterator[tuple[str, ...]]:
    for measure in measures:
        title = f"{measure.case.title} [{measure.case.unit}]"
        for name, runs in measure.runs.items():
            bound = " ▲" if any(run.load_bound for run in runs) else ""
            faults = sum(run.faults for run in runs)
            wrong = f" ({faults} wrong)" if faults else ""
            compared = OURS in measure.runs and name != OURS
            ratio = f"{measure.ratio(name):.2f}x" if compared else ""
            used = f"{number(measure.median(name, 'us'))} µs" if all("us" in run.details for run in runs) else ""
            beside = f"; {told}" if (told := remark(measure, name)) else ""
            value = f"{number(measure.median(name))}{bound}{wrong}{beside}"
            yield title, name, value, f"±{measure.spread(name):.0%}", ratio, used
            title = ""


def _latencies(measures: Iterable[Measure]) -> Iterator[tuple[str, ...]]:
    for measure in measures:
        title = f"{measure.case.parameters['messages/s']:,}"
        for name in measure.runs:
            shares = [number(measure.median(name, f"p{share}")) for share in (50, 90, 99)]
            late = " ▲" if measure.median(name, "late99") > measure.median(name, "p50") else ""
            lost = sum(run.faults for run in measure.runs[name])
            wrong = f" ({lost} wrong)" if lost else ""
            yield title, name, shares[0] + late + wrong, *shares[1:], f"{number(measure.median(name, 'us'))} µs"
            title = ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    body = [f"| {' | '.join(row)} |" for row in rows]
    return [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *body]


def _profiles(profiles: dict[str, list[list[Any]]]) -> str:
    lines = [
        "## Where the time goes",
        "Own time of functions as a share of all, by cProfile, which makes Python look dearer than C. The thread that",
        "writes to SQLite is not in it.",
        "",
    ]
    for title, rows in profiles.items():
        listed = [f"{name} {share:.0%}" for name, share in rows]
        lines += [f"- **{title}**: {', '.join(listed)}"]
    return "\n".join([*lines, ""])


def _machine(about: dict[str, str]) -> str:
    return "\n".join(["## The machine", *_table(("", ""), about.items()), ""])


def main(source: Path, docs: Path) -> int:
    """Write page and pictures; 1 when there is nothing to draw with."""
    notes = Path(__file__).with_name("notes.md")
    said = json.loads(source.read_text())
    (docs / "benchmarks.md").write_text(page(said, notes.read_text() if notes.exists() else ""))
    python = peers.peers_python()
    if python is None:
        print("no matplotlib: the pictures stay as they are", file=sys.stderr)
        return 1
    pictures = docs / "pictures"
    pictures.mkdir(exist_ok=True)
    subprocess.run([python, Path(__file__).with_name("pictures.py"), source, pictures], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
