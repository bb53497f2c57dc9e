"""The vectors of our own extensions come out of their generator, byte for byte."""

import subprocess
from pathlib import Path

import pytest

VECTORS = Path(__file__).resolve().parents[2] / "vectors"


@pytest.mark.node
def test_the_generator_makes_the_committed_files(tmp_path: Path) -> None:
    subprocess.run(["node", VECTORS / "generate" / "extensions.mjs", tmp_path], check=True, timeout=60)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in (VECTORS / "extensions").iterdir()}


def test_the_generator_uses_nothing_but_node_itself() -> None:
    lines = (VECTORS / "generate" / "extensions.mjs").read_text().splitlines()
    imports = [line for line in lines if line.startswith("import ") or "require(" in line or "import(" in line]
    assert imports
    assert all('from "node:' in line for line in imports)
