"""Fuzz what reads foreign bytes, guided by coverage: ``python -m tests.fuzz [--seconds 60] [--jobs 2] [TARGET...]``.

Prints executions, coverage and findings per target. What has been learned stays in ``.cache/fuzz`` for the next run;
what makes a target fail is written to ``tests/fuzz/corpus/TARGET``, where a test holds it from then on.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).parent / "corpus"
LEARNED = ROOT / ".cache" / "fuzz"


@dataclass(frozen=True)
class Outcome:
    """What a run of one target came to."""

    executions: int
    edges: int
    inputs: int
    """Inputs kept because each reaches something that no other does."""
    seconds: float
    finding: str


def fuzz(name: str, seconds: int) -> Outcome:
    """Run one target."""
    learned, findings = LEARNED / name, CORPUS / name
    for folder in (learned, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in TARGETS[name].seeds:
        (learned / sha256(seed).hexdigest()[:16]).write_bytes(seed)
    options = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=1024", f"-artifact_prefix={findings}/"]
    argv = [sys.executable, "-m", "tests.fuzz.worker", name, str(learned), *options, "-print_final_stats=1"]
    began = time.monotonic()
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
    said = done.stdout + done.stderr
    if not any(findings.iterdir()):
        findings.rmdir()
    progress = re.findall(r"^#\d+\s.*?cov: (\d+).*?corp: (\d+)", said, re.MULTILINE)
    executions = re.findall(r"number_of_executed_units: (\d+)", said)
    edges, inputs = map(int, progress[-1]) if progress else (0, 0)
    finding = "" if done.returncode == 0 else "\n".join(said.splitlines()[-30:])
    return Outcome(int(executions[-1]) if executions else 0, edges, inputs, time.monotonic() - began, finding)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz; 1 when something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz what reads foreign bytes.")
    parser.add_argument("--seconds", type=int, default=60, help="per target (60)")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time (1)")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    options = parser.parse_args(arguments)
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"there is no target {', '.join(unknown)}")
    names = options.targets or list(TARGETS)
    print(f"{'target':<12}{'executions':>12}{'per second':>12}{'edges':>8}{'inputs':>8}  found", flush=True)
    found = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for name, outcome in zip(names, pool.map(lambda name: fuzz(name, options.seconds), names), strict=True):
            rate = outcome.executions / outcome.seconds
            numbers = f"{outcome.executions:>12,}{rate:>12,.0f}{outcome.edges:>8,}{outcome.inputs:>8,}"
            print(f"{name:<12}{numbers}  {'yes' if outcome.finding else 'nothing'}", flush=True)
            if outcome.finding:
                found += 1
                print(outcome.finding, flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
