"""Many rows by few statements.

``executemany`` steps row by row, and each step takes the interpreter's lock back from a main thread that is busy: in a
thread of its own that is a thousand rows a second. One statement of many rows takes it once.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

VARIABLES = 900
"""Of one statement at most: every SQLite takes 999."""

_Item = TypeVar("_Item")


def insert(connection: sqlite3.Connection, into: str, rows: Sequence[tuple[Any, ...]], then: str = "") -> None:
    """Insert rows.

    Args:
        into: the statement up to ``VALUES``.
        then: what follows the values, such as ``ON CONFLICT``.
    """
    if not rows:
        return
    marks = f"({_marks(len(rows[0]))})"
    for part in _parts(rows, VARIABLES // len(rows[0])):
        values = [value for row in part for value in row]
        connection.execute(f"{into} VALUES {', '.join([marks] * len(part))} {then}", values)


def change(connection: sqlite3.Connection, statement: str, keys: Sequence[object], *given: object) -> None:
    """Run a statement that ends in ``IN`` for many keys.

    Args:
        statement: with a ``?`` for each of ``given``.
    """
    for part in _parts(keys, VARIABLES - len(given)):
        connection.execute(f"{statement} ({_marks(len(part))})", [*given, *part])


def grouped(pairs: Iterable[tuple[Any, _Item]]) -> dict[Any, list[_Item]]:
    """Second members by the first."""
    groups: dict[Any, list[_Item]] = {}
    for first, second in pairs:
        groups.setdefault(first, []).append(second)
    return groups


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _parts(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
