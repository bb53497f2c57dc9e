"""Kills at random instants while messages flow; at the end every message exactly once, in order.

    python -m tests.faults.chaos --rounds 20 --messages 5000 --seed 1

A round starts a registry, a relay, a sender and a recipient on empty SQLite stores. The seed says after how many
messages, and how many milliseconds later, which of the four is killed with -9, and how long it stays away. Every other
round both applications send. When all is delivered the journals of the applications are compared with what was sent:
each number once and in order. A copy counts as none only if it was marked as redelivered, which is what lets an
application tell. Then outboxes, inboxes and the relay's store must be empty.

A failure prints its seed and the command that repeats the round. The seed repeats the plan; what the kernel and the
disk do between two kills is another each time, so ``--rounds 20`` with that seed tries the same plan 20 times.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from meshlib.store import open_store
from tests.faults.fleet import Fleet, Kept, fleet

START = 60.0
"""Seconds a round may take in all, beside :data:`PER_MESSAGE` and :data:`PER_KILL`."""
PER_MESSAGE = 0.02
PER_KILL = 3.0


@dataclass(frozen=True)
class Kill:
    """A kill of the plan."""

    progress: int
    """Messages the applications have been handed over when the clock starts."""
    delay: float
    """Seconds from then on."""
    victim: str
    away: float
    """Seconds until it is started again."""


@dataclass
class Outcome:
    """What a round did."""

    seed: int
    messages: int = 0
    copies: int = 0
    """Handed over again after a kill, and marked so."""
    kills: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    """Kills of a process that was down already."""
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    trace: str = ""


def plan(chosen: random.Random, messages: int, kills: int, names: list[str]) -> list[Kill]:
    """Kills spread over the flow; each process is met, and half the kills fall into the recovery from another."""
    victims = [names[index % len(names)] for index in range(kills)]
    chosen.shuffle(victims)
    made = [
        Kill(
            chosen.randrange(messages * 9 // 10 + 1),
            chosen.uniform(0, 0.02) if chosen.random() < 0.5 else chosen.uniform(0, 0.8),
            victim,
            0.0 if chosen.random() < 0.5 else chosen.uniform(0, 0.4),
        )
        for victim in victims
    ]
    return sorted(made, key=lambda kill: kill.progress)


class Progress:
    """What an application's journal says, read as it grows."""

    def __init__(self, application: Kept) -> None:
        self._path = application.folder / application.name / "journal"
        self._at = 0
        self._rest = b""
        self.took: list[tuple[int, str, bool]] = []
        self.settled: list[tuple[int, str]] = []

    def read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            new = file.read()
        self._at += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            kind, number, *rest = line.decode().split(" ")
            if kind == "took":
                self.took.append((int(number), rest[0], rest[1] == "again"))
            elif kind == "settled":
                self.settled.append((int(number), rest[0]))

    def faults(self, name: str, messages: int) -> tuple[list[str], int]:
        """What is wrong with what an application was handed over, and how many marked copies it got."""
        found = []
        order: list[int] = []
        ids: set[str] = set()
        copies = 0
        for number, message, again in self.took:
            if message not in ids:
                ids.add(message)
                order.append(number)
            elif again:
                copies += 1
            else:
                found.append(f"{name} got {number} twice, and the second time it was not marked as redelivered")
        expected = list(range(messages))
        if order != expected:
            numbers = Counter(order)
            twice = [number for number, count in numbers.items() if count > 1]
            missing = sorted(set(expected) - set(order))
            where = next((at for at, (a, b) in enumerate(zip(order, expected, strict=False)) if a != b), len(order))
            found.append(
                f"{name} got {len(order)} of {messages} messages: missing {missing[:10]}, under two ids {twice[:10]}, "
                f"first out of order at {where}: {order[max(0, where - 3) : where + 6]}"
            )
        return found, copies

    def unsettled(self, name: str, messages: int) -> list[str]:
        states = dict(self.settled)
        odd = {number: state for number, state in states.items() if state != "delivered"}
        found = [f"{name} heard of {number} that it is {state}" for number, state in list(odd.items())[:5]]
        if len(states) != messages:
            found.append(f"{name} heard of {len(states)} of its {messages} messages that they are settled")
        return found


def play(seed: int, messages: int, kills: int, folder: Path, *, both: bool = False, **options: str) -> Outcome:
    """One round."""
    outcome = Outcome(seed)
    began = time.monotonic()
    chosen = random.Random(seed)
    with fleet(folder, chosen) as made:
        alice = made.application("alice", "--to", "bob", "--messages", messages)
        bob = made.application("bob", *(("--to", "alice", "--messages", messages) if both else ()))
        flows = {"bob": messages} | ({"alice": messages} if both else {})
        outcome.messages = sum(flows.values())
        journals = {kept.name: Progress(kept) for kept in made.applications}
        planned = plan(chosen, outcome.messages, kills, [kept.name for kept in made.all])
        try:
            _run(made, planned, journals, flows, outcome)
            look_again(made)
            leave(made, outcome.faults)
        except AssertionError as failure:
            outcome.faults.append(str(failure))
        outcome.copies = judge(
            made, journals, flows, {alice.name: messages, bob.name: messages if both else 0}, outcome.faults
        )
        outcome.trace = made.describe()
    outcome.seconds = time.monotonic() - began
    return outcome


def _run(
    made: Fleet, planned: list[Kill], journals: dict[str, Progress], flows: dict[str, int], outcome: Outcome
) -> None:
    for kept in made.all:
        kept.start()
    victims = {kept.name: kept for kept in made.all}
    waiting, due = list(planned), list[tuple[float, Kill]]()

    def step() -> bool:
        for journal in journals.values():
            journal.read()
        progress = sum(len(journal.took) for journal in journals.values())
        now = time.monotonic()
        while waiting and waiting[0].progress <= progress:
            kill = waiting.pop(0)
            due.append((now + kill.delay, kill))
        for entry in [entry for entry in due if entry[0] <= now]:
            due.remove(entry)
            if victims[entry[1].victim].kill(entry[1].away):
                outcome.kills[entry[1].victim] += 1
            else:
                outcome.missed += 1
        arrived = all(len({id_ for _, id_, _ in journals[name].took}) >= count for name, count in flows.items())
        settled = sum(len({number for number, _ in journal.settled}) for journal in journals.values())
        return not waiting and not due and arrived and settled >= outcome.messages

    bound = START + PER_MESSAGE * outcome.messages + PER_KILL * len(planned)
    made.wait(step, "every message is delivered and its sender knows", bound)


def leave(made: Fleet, faults: list[str]) -> None:
    """End everything in order, the applications first."""
    faults += [f"{kept.name} did not leave in order" for kept in reversed(made.all) if kept.leave() != 0]


def judge(
    made: Fleet, journals: dict[str, Progress], taken: dict[str, int], sent: dict[str, int], faults: list[str]
) -> int:
    """Find what is wrong with a fleet that has left. Returns how many marked copies were handed over."""
    copies = 0
    for name, journal in journals.items():
        journal.read()
        found, again = journal.faults(name, taken.get(name, 0))
        faults += [*found, *journal.unsettled(name, sent.get(name, 0))]
        copies += again
    for kept in made.all:
        faults += kept.surprises
        if "Traceback" in kept.tail(10_000) and not kept.may_end:
            faults.append(f"{kept.name} printed a traceback")
    if not faults:
        faults += _left_over(made)
    return copies


def look_again(made: Fleet) -> None:
    """Start everything once more: what would come twice comes now."""
    for kept in made.all:
        kept.kill()
    made.wait(lambda: made.relay.listening and made.registry.listening, "the servers are back")
    made.wait(
        lambda: made.relay_metric("agents") == len(made.applications) and made.relay_metric("inbox_frames") == 0,
        "both are back and the relay keeps nothing",
        pause=0.05,
    )


def _left_over(made: Fleet) -> list[str]:
    found = []
    for application in made.applications:
        store = open_store(application.store, None)
        try:
            saved = store.load()
        finally:
            store.close()
        if saved.outbox:
            found.append(f"{application.name} has {len(saved.outbox)} messages left in its outbox")
        if saved.inbox:
            found.append(f"{application.name} has {len(saved.inbox)} messages left in its inbox")
    return found


def report(outcome: Outcome, number: int, messages: int, kills: int, *, both: bool) -> str:
    """One line for a round that went well, everything for one that did not."""
    killed = ", ".join(f"{name} {count}" for name, count in sorted(outcome.kills.items()))
    line = (
        f"round {number} (seed {outcome.seed}{', both ways' if both else ''}): {outcome.messages} messages, "
        f"{sum(outcome.kills.values())} kills ({killed}), {outcome.copies} marked copies, {outcome.seconds:.1f} s"
    )
    if not outcome.faults:
        return f"{line}: every message once and in order"
    repeat = f"python -m tests.faults.chaos --rounds 1 --seed {outcome.seed} --messages {messages} --kills {kills}"
    wrong = "\n".join(f"  {fault}" for fault in outcome.faults[:20])
    return f"{line}: FAILED\n{wrong}\n{outcome.trace}\n  repeat: {repeat}{' --both' if both else ''} --keep FOLDER"


def main() -> int:
    parser = argparse.ArgumentParser(description="kill -9 everything at random instants while messages flow")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--messages", type=int, default=5000, help="in a round, each way")
    parser.add_argument("--kills", type=int, default=20, help="in a round")
    parser.add_argument("--seed", type=int, default=None, help="of the first round; the next ones count up")
    parser.add_argument("--both", action="store_true", help="both applications send in every round")
    parser.add_argument("--keep", type=Path, help="keep stores, journals and logs here")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    total = Counter[str]()
    began = time.monotonic()
    for number in range(options.rounds):
        both = options.both or number % 2 == 1
        base = options.keep or Path(tempfile.mkdtemp(prefix="mesh-chaos-"))
        folder = base / f"seed-{seed + number}"
        outcome = play(seed + number, options.messages, options.kills, folder, both=both)
        print(report(outcome, number, options.messages, options.kills, both=both), flush=True)
        total.update(
            rounds=1,
            messages=outcome.messages,
            kills=sum(outcome.kills.values()),
            copies=outcome.copies,
            failed=bool(outcome.faults),
        )
        if options.keep is None:
            shutil.rmtree(base)
    print(
        f"{total['rounds']} rounds, {total['messages']} messages, {total['kills']} kills, {total['copies']} marked "
        f"copies, {total['failed']} rounds failed, {time.monotonic() - began:.0f} s",
        flush=True,
    )
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
