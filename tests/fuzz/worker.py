"""One target under atheris, in a process of its own: ``python -m tests.fuzz.worker TARGET CORPUS [OPTIONS]``."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["meshlib", "mesh_relay", "mesh_registry"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    name, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], f"-max_len={TARGETS[name].longest}", *options], TARGETS[name].run)
    atheris.Fuzz()
