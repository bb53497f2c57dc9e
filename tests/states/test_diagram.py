"""docs/states.md shows the table the clients run on."""

import runpy
from pathlib import Path

from meshlib.client.peers import ENTRY_TABLE, Entry

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_states_md_is_drawn_from_the_table() -> None:
    text = (DOCS / "states.md").read_text(encoding="utf-8")
    draw = runpy.run_path(str(DOCS / "draw_states.py"))
    assert draw["redrawn"](text, ENTRY_TABLE, Entry.IDLE) == text, "run: python docs/draw_states.py"
    assert draw["mermaid"](ENTRY_TABLE, Entry.IDLE) in text
    assert draw["rows"](ENTRY_TABLE) in text


def test_every_transition_is_an_arrow() -> None:
    text = (DOCS / "states.md").read_text(encoding="utf-8")
    assert text.count(" --> ") == len(ENTRY_TABLE) + 1
