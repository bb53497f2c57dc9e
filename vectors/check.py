#!/usr/bin/env python3
"""Check files of test vectors: ``python vectors/check.py PATH...``

PATH is a file, or a folder that is searched for ``*.json``. One line per file says ``passed``, or ``failed`` and what
failed. The exit status is 0 when every file passed, 1 when one failed, 2 for a wrong call.

A file fails when a test fails, and also when nothing could be checked: it is unreadable, not in the format of
vectors/README.md, empty, of an unknown type, or says another number of tests than it holds.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the repository is the root of packages, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from vectors.checkers import Checker, CheckFailed, client, crypto, registry, wire

CHECKERS: dict[str, Checker] = {**crypto.CHECKERS, **wire.CHECKERS, **client.CHECKERS, **registry.CHECKERS}

PROFILES = frozenset({"agt-4", "agt-5", "any", "meshlib"})
RESULTS = frozenset({"valid", "invalid"})
SHOWN_FAILURES = 5


class NotInFormat(Exception):
    """The file is no vector file, so none of its tests was run."""


@dataclass(frozen=True)
class Failure:
    """One test that failed; ``tc_id`` is None when it is the file itself."""

    reason: str
    tc_id: int | None = None
    type: str | None = None


@dataclass(frozen=True)
class Report:
    """What became of one file."""

    path: Path
    tests: int = 0
    types: dict[str, int] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every test of the file ran and passed."""
        return not self.failures


def check_file(path: Path) -> Report:
    """Run every test of one file. Never raises: whatever is wrong becomes a failure."""
    try:
        document = _read(path)
        groups = _groups(document)
    except NotInFormat as error:
        return Report(path, failures=(Failure(str(error)),))
    types: dict[str, int] = {}
    failures: list[Failure] = []
    for group in groups:
        kind = group["type"]
        types[kind] = types.get(kind, 0) + len(group["tests"])
        profile = group.get("profile", document["profile"])
        for test in group["tests"]:
            reason = _check(group, test, profile)
            if reason is not None:
                failures.append(Failure(reason, test["tcId"], kind))
    return Report(path, sum(types.values()), types, tuple(failures))


def _check(group: dict[str, Any], test: dict[str, Any], profile: str) -> str | None:
    checker = CHECKERS.get(group["type"])
    if checker is None:
        return "unknown type"
    try:
        checker(group, test, profile)
    except CheckFailed as failure:
        return str(failure)
    except Exception as error:  # noqa: BLE001  # a corrupted test may break its checker in any way: it has failed
        return f"{type(error).__name__}: {error}"
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes(), object_pairs_hook=_members, parse_constant=_refuse)
    except OSError as error:
        raise NotInFormat(f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise NotInFormat(f"is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise NotInFormat("is no vector file: not an object")
    return document


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is given twice")
    return members


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _groups(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Check everything about a file that is the same for all types, so that checkers can rely on it."""
    for member, kind in _DOCUMENT.items():
        _typed(document, member, kind, "the file")
    groups: list[dict[str, Any]] = document["testGroups"]
    if not groups:
        raise NotInFormat("has no test groups")
    seen: set[int] = set()
    for group in groups:
        if not isinstance(group, dict):
            raise NotInFormat("a test group is no object")
        _typed(group, "type", str, "a test group")
        _typed(group, "tests", list, "a test group")
        if not group["tests"]:
            raise NotInFormat(f"the group {group['type']} has no tests")
        if group.get("profile", document["profile"]) not in PROFILES:
            raise NotInFormat(f"unknown profile; known are {', '.join(sorted(PROFILES))}")
        for test in group["tests"]:
            _check_frame_of_test(test, document["notes"], seen)
    if document["numberOfTests"] != len(seen):
        raise NotInFormat(f"says {document['numberOfTests']} tests and holds {len(seen)}")
    return groups


_DOCUMENT = {
    "algorithm": str,
    "generatorVersion": str,
    "profile": str,
    "notes": dict,
    "numberOfTests": int,
    "testGroups": list,
}
_TEST = {"tcId": int, "comment": str, "flags": list, "result": str}


def _check_frame_of_test(test: Any, notes: dict[str, Any], seen: set[int]) -> None:
    if not isinstance(test, dict):
        raise NotInFormat("a test is no object")
    for member, kind in _TEST.items():
        _typed(test, member, kind, f"test {test.get('tcId')}")
    if test["tcId"] in seen:
        raise NotInFormat(f"tcId {test['tcId']} is used twice")
    seen.add(test["tcId"])
    if test["result"] not in RESULTS:
        raise NotInFormat(f"test {test['tcId']}: result is neither valid nor invalid")
    for flag in test["flags"]:
        if not isinstance(flag, str) or flag not in notes:
            raise NotInFormat(f"test {test['tcId']}: the flag {flag!r} is not explained in notes")


def _typed(members: dict[str, Any], member: str, kind: type, where: str) -> None:
    if type(members.get(member)) is not kind:
        raise NotInFormat(f"{where} has no {member} of type {kind.__name__}")


def find(paths: Sequence[Path]) -> Iterator[Path | Report]:
    """The vector files under ``paths``, and a report for every path that has none."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        files = sorted(file for file in path.rglob("*.json") if file.is_file())
        yield from files
        if not files:
            yield Report(path, failures=(Failure("holds no vector files"),))


def describe(report: Report, *, terminal: bool) -> str:
    """One line; on a terminal in colour, and with the first failures on lines of their own."""
    verdict = "passed" if report.passed else "failed"
    if terminal:
        verdict = f"\x1b[{32 if report.passed else 31}m{verdict}\x1b[0m"
    counts = ", ".join(f"{kind} {count}" for kind, count in report.types.items())
    line = f"{verdict} {report.path} {report.tests} tests" + (f" ({counts})" if counts else "")
    if report.passed:
        return line
    if report.failures[0].tc_id is None:
        return f"{line}: {_one_line(report.failures[0].reason)}"
    reasons = [f"tcId {f.tc_id} {f.type}: {_one_line(f.reason)}" for f in report.failures[:SHOWN_FAILURES]]
    hidden = [str(failure.tc_id) for failure in report.failures[SHOWN_FAILURES:]]
    if hidden:
        reasons.append(f"and tcId {', '.join(hidden)}")
    return f"{line}: {len(report.failures)} failed" + "".join(("\n    " if terminal else "; ") + r for r in reasons)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def as_json(report: Report) -> str:
    """One line for machines."""
    failures = [{"tcId": f.tc_id, "type": f.type, "reason": f.reason} for f in report.failures]
    verdict = "passed" if report.passed else "failed"
    return json.dumps(
        {"file": str(report.path), "verdict": verdict, "tests": report.tests, "types": report.types}
        | ({} if report.passed else {"failures": failures})
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="check.py", description="Check files of test vectors (vectors/README.md).")
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="a vector file, or a folder of them")
    parser.add_argument("--json", action="store_true", help="one JSON object per file")
    options = parser.parse_args(arguments)
    terminal = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    everything_passed = True
    for found in find(options.paths):
        report = check_file(found) if isinstance(found, Path) else found
        everything_passed &= report.passed
        print(as_json(report) if options.json else describe(report, terminal=terminal), flush=True)
    return 0 if everything_passed else 1


if __name__ == "__main__":
    sys.exit(main())
