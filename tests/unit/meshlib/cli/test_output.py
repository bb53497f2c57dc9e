"""What reaches a terminal: foreign text is harmless, JSON stays on one line of ASCII."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.cli.output import Console, Style, as_line, indented, visible, wants_colour


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def console(out: io.StringIO, *, json: bool = False) -> Console:
    return Console(out, io.StringIO(), {}, json=json)


@given(st.text())
def test_nothing_that_moves_the_cursor_is_left(text: str) -> None:
    assert all(one.isprintable() or one in "\u200c\u200d" for one in visible(text))


@pytest.mark.parametrize("text", ["plain text", "für 💌", "👩\u200d🚀", "日本語"])
def test_readable_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize("evil", ["\x1b[2J", "\r", "\x07", "\x9b31m", "\u202e", "\u2028", "\ud800"])
def test_control_characters_are_spelled_out(evil: str) -> None:
    assert visible(evil).startswith("\\")


@given(st.text())
def test_every_further_line_is_moved_in(text: str) -> None:
    _, *rest = indented(text, "    ").split("\n")
    assert all(line.startswith("    ") for line in rest)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=8))
def test_json_is_one_line_of_ascii(value: object) -> None:
    line = as_line(value)
    assert line.isascii()
    assert len(line.splitlines()) == 1
    assert json.loads(line) == value


def test_colours_appear_on_terminals_that_want_them() -> None:
    assert wants_colour(Terminal(), {"TERM": "xterm"})
    assert not wants_colour(Terminal(), {"TERM": "dumb"})
    assert not wants_colour(Terminal(), {"NO_COLOR": "1"})
    assert not wants_colour(io.StringIO(), {"TERM": "xterm"})


def test_table_lines_its_columns_up_and_defuses_its_cells() -> None:
    out = io.StringIO()
    console(out).table([["a", "long cell", "x\x1b[0m"], ["bbb", "c", "y"]], (Style.BOLD,), indent="")
    assert out.getvalue() == "a     long cell   x\\x1b[0m\nbbb   c           y\n"


def test_colour_does_not_break_columns() -> None:
    out = Terminal()
    console(out).table([["a", "1"], ["bbb", "2"]], (Style.BOLD,), indent="")
    assert out.getvalue() == "\x1b[1ma  \x1b[0m   1\n\x1b[1mbbb\x1b[0m   2\n"


def test_errors_are_one_line_whatever_is_in_them() -> None:
    for as_json in (False, True):
        err = io.StringIO()
        Console(io.StringIO(), err, {}, json=as_json).fail("two\nlines\x1b[2J", 3, "Kind")
        (line,) = err.getvalue().splitlines()
        assert "\x1b" not in line
        if as_json:
            assert json.loads(line) == {"event": "failed", "error": "Kind", "detail": "two\nlines\x1b[2J", "exit": 3}
