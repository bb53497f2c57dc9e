"""Draws the diagram of docs/states.md from the table in meshlib/client/peers.py. Run, it rewrites the document."""

import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

BEGIN, END = "```mermaid\n", "```\n"


def mermaid(table: Mapping[tuple[Enum, Enum], Enum], start: Enum) -> str:
    """A Mermaid state diagram of a table `(state, what happens) -> state`."""
    lines = ["stateDiagram-v2", f"    [*] --> {start.value}"]
    for (state, happening), after in table.items():
        lines.append(f"    {state.value} --> {after.value}: {happening.value}")
    return "\n".join(lines) + "\n"


def rows(table: Mapping[tuple[Enum, Enum], Enum]) -> str:
    """The same table as Markdown, with what cannot happen shown as a dash."""
    states = list(dict.fromkeys(state for state, _ in table))
    happenings = list(dict.fromkeys(happening for _, happening in table))
    lines = ["| what happens | " + " | ".join(state.value for state in states) + " |", "|---" * (len(states) + 1) + "|"]
    for happening in happenings:
        cells = [table[state, happening].value if (state, happening) in table else "-" for state in states]
        lines.append(f"| {happening.value} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def redrawn(document: str, table: Mapping[tuple[Enum, Enum], Enum], start: Enum) -> str:
    """The document with the diagram and the table as they should be."""
    head, _, rest = document.partition(BEGIN)
    _, _, rest = rest.partition(END)
    between, _, tail = rest.partition("| what happens |")
    after = tail[tail.index("\n\n") :] if "\n\n" in tail else "\n"
    return f"{head}{BEGIN}{mermaid(table, start)}{END}{between}{rows(table).rstrip()}{after}"


def main() -> int:
    """Rewrite docs/states.md."""
    from meshlib.client.peers import ENTRY_TABLE, Entry

    document = Path(__file__).with_name("states.md")
    text = document.read_text(encoding="utf-8")
    document.write_text(redrawn(text, ENTRY_TABLE, Entry.IDLE), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
