"""What people and machines get to read: tables and colours on a terminal, JSON lines elsewhere on request.

Text of peers and servers is foreign: it reaches a terminal only through :func:`visible`, because an escape sequence
in a message could otherwise rewrite the screen of whoever reads it.
"""

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TextIO

_JOINERS = "\u200c\u200d"  # hold emoji and Indic letters together, and move nothing


class Style(StrEnum):
    """What a piece of text is, as ANSI colour."""

    PLAIN = ""
    BOLD = "1"
    DIM = "2"
    GOOD = "32"
    WARN = "33"
    BAD = "31"
    NAME = "36"


def visible(text: str) -> str:
    """``text`` with everything that moves the cursor, changes colours or turns the writing around spelled out."""
    return "".join(
        one if one.isprintable() or one in _JOINERS else one.encode("unicode_escape").decode("ascii") for one in text
    )


def indented(text: str, indent: str) -> str:
    """Foreign text of several lines; each further line is moved in, so that none can pass for a line of ours."""
    return f"\n{indent}".join(visible(line) for line in text.splitlines() or [""])


def wants_colour(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether ``stream`` is a terminal that shows colours and nobody asked for none (https://no-color.org)."""
    return stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


class Console:
    """Where a command says what it has to say.

    Args:
        json: results and errors as one JSON object per line.
    """

    def __init__(self, out: TextIO, err: TextIO, environment: Mapping[str, str], *, json: bool = False) -> None:
        self.out = out
        self.err = err
        self.json = json
        self._environment = environment
        self._colour_out = wants_colour(out, environment)
        self._colour_err = wants_colour(err, environment)
        self._shown = 0

    def say(self, text: str = "") -> None:
        """A line for people on standard output."""
        print(text, file=self.out, flush=True)

    def emit(self, **members: object) -> None:
        """A JSON object on a line of its own, ASCII only, so that no terminal or locale can change it."""
        print(as_line(members), file=self.out, flush=True)

    def note(self, text: str, **members: object) -> None:
        """Something about the command itself, on standard error: results keep standard output to themselves."""
        print(
            as_line(members) if self.json else self._paint(text, Style.DIM, self._colour_err), file=self.err, flush=True
        )

    @property
    def live(self) -> bool:
        """Whether somebody watches standard error, on a terminal that can rewrite its last line."""
        return self.err.isatty() and not self.json and self._environment.get("TERM") != "dumb"

    @property
    def full_screen(self) -> bool:
        """Whether results go to a terminal that lets itself be drawn on."""
        return self.out.isatty() and not self.json and self._environment.get("TERM") != "dumb"

    def show(self, text: str) -> None:
        """Where :attr:`live`, write ``text`` over the last line; an empty text removes it."""
        if self.live:
            print(f"\r{text}{' ' * (self._shown - len(text))}", end="\r" if not text else "", file=self.err, flush=True)
            self._shown = len(text)

    def fail(self, message: str, code: int, kind: str) -> None:
        """One line on standard error about why the command ends."""
        if self.json:
            line = as_line({"event": "failed", "error": kind, "detail": message, "exit": code})
        else:
            line = f"{self._paint('mesh:', Style.BAD, self._colour_err)} {visible(message)}"
        print(line, file=self.err, flush=True)

    def paint(self, text: str, style: Style) -> str:
        """``text`` in colour, where standard output shows colours."""
        return self._paint(text, style, self._colour_out)

    @staticmethod
    def _paint(text: str, style: Style, colour: bool) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if colour and style else text

    def table(self, rows: Sequence[Sequence[str]], styles: Sequence[Style] = (), *, indent: str = "  ") -> None:
        """Rows in columns; foreign text in cells is made harmless here. ``styles`` has one entry per column."""
        cells = [[visible(cell) for cell in row] for row in rows]
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))] if cells else []
        for row in cells:
            last = len(row) - 1
            painted = [
                self.paint(cell.ljust(0 if column == last else widths[column]), _style(styles, column))
                for column, cell in enumerate(row)
            ]
            self.say(f"{indent}{'   '.join(painted)}".rstrip())


def as_line(value: object) -> str:
    """``value`` as JSON on one line."""
    return json.dumps(value, separators=(",", ":"), default=str)


def _style(styles: Sequence[Style], column: int) -> Style:
    return styles[column] if column < len(styles) else Style.PLAIN
