"""One module per part of the system, each with ``CHECKERS``: from a group's ``type`` to the function judging a test.

A checker runs production code on the recorded input and compares every recorded output. It raises
:class:`CheckFailed` when they differ, when production code accepts what the record says is refused or refuses what
it says is accepted, and when the record contradicts itself: a checker that looks away would pass a corrupted file.
"""

from collections.abc import Callable
from typing import Any

Group = dict[str, Any]
Test = dict[str, Any]
Checker = Callable[[Group, Test, str], None]
"""Group, test and profile (``agt-4``, ``agt-5``, ``any`` or ``meshlib``) in, CheckFailed out."""


class CheckFailed(Exception):
    """Production code and record disagree; the message says about what, without quoting pages of it."""


def expect_equal(what: str, ours: object, recorded: object) -> None:
    """Raise CheckFailed unless both are equal and of the same type (1, 1.0 and True are three values)."""
    if type(ours) is not type(recorded) or ours != recorded:
        raise CheckFailed(f"{what}: ours is {_short(ours)}, recorded is {_short(recorded)}")


def expect_valid(test: Test) -> None:
    """Raise CheckFailed unless the record says that upstream takes the input."""
    if test["result"] != "valid":
        raise CheckFailed("recorded as invalid, and ours takes it")


def expect_invalid(test: Test, reason: object) -> None:
    """Raise CheckFailed unless refusing the input is what the record says, or allows."""
    if test["result"] != "invalid" and "MayReject" not in test["flags"]:
        raise CheckFailed(f"recorded as valid, and ours refuses it: {_short(reason)}")


def expect_absent(test: Test, *members: str) -> None:
    """Raise CheckFailed when a refused test records an output all the same."""
    for member in members:
        if member in test:
            raise CheckFailed(f"an invalid test must not record {member}")


def _short(value: object) -> str:
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 160 else f"{text[:120]}… ({len(text)} characters)"
