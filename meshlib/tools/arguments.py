"""What a model called a tool with, read leniently and refused in words it can act on."""

from collections.abc import Mapping
from typing import Any

from meshlib.errors import InvalidValue

SENDERS = 20
"""Peers that can be waited for at the same time."""


class Arguments:
    """What a model called a tool with. Unknown members are ignored: models add some.

    Raises, from every method: InvalidValue, in words that let the model correct its call.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def _first(self, names: tuple[str, ...]) -> Any:
        return next((self._values[name] for name in names if self._values.get(name) is not None), None)

    def peer(self) -> str:
        """The peer the call is about, by any name that runtimes give the parameter."""
        return _name_of_peer(self._first(("to_agent", "to", "name", "target_agent")), "to_agent")

    def payload(self) -> object:
        """What to send: text, or any JSON value."""
        value = self._first(("content", "payload", "message"))
        if value is None:
            raise InvalidValue("content is missing: the text to send")
        return value

    def text(self, name: str, *others: str) -> str:
        """A text that is not empty."""
        value = self._first((name, *others))
        if not isinstance(value, str) or not value.strip():
            raise InvalidValue(f"{name} is missing: a text that is not empty")
        return value

    def maybe(self, name: str) -> str:
        """A text, empty if it is not there."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, str):
            raise InvalidValue(f"{name} must be a text")
        return value or ""

    def seconds(self, default: float, most: float) -> float:
        """``timeout_seconds``, at most ``most``."""
        value = self._number(self._first(("timeout_seconds", "timeout")), "timeout_seconds")
        return default if value is None else min(max(value, 0.1), most)

    def count(self, name: str, default: int, most: int, least: int = 1) -> int:
        """A whole number within bounds."""
        value = self._number(self._values.get(name), name)
        return default if value is None else int(min(max(value, least), most))

    def peers(self, name: str) -> list[str]:
        """Several peers; one text is a list of one."""
        value = self._values.get(name)
        if value is None:
            return []
        several = [value] if isinstance(value, str) else value
        if not isinstance(several, list | tuple) or len(several) > SENDERS:
            raise InvalidValue(f"{name} must be a list of at most {SENDERS} names or DIDs")
        return list(dict.fromkeys(_name_of_peer(one, name) for one in several))

    @staticmethod
    def _number(value: object, name: str) -> float | None:
        if isinstance(value, str):  # models write numbers as texts
            try:
                value = float(value)
            except ValueError:
                value = object()
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise InvalidValue(f"{name} must be a number")
        return min(max(float(value), -1e9), 1e9)


def _name_of_peer(value: object, parameter: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidValue(
            f"{parameter} is missing: the name or DID of an agent; mesh_discover and mesh_peers list some"
        )
    name = value.strip()
    if len(name) > 200 or not name.isprintable():
        raise InvalidValue(f"{parameter} must be a name or DID of at most 200 printable characters")
    return name
