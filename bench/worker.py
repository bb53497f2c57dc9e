"""The frame of a measuring process in a peer's own environment: JSON lines in, JSON lines out. Standard library only.

{"task": "seal", "payload": 256, "seconds": 0.5}   ->   {"rate": 51234.5}
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

Operation = Callable[[], object]


def rate(operation: Operation, seconds: float) -> float:
    """How often per second of CPU time an operation can be done, measured for about ``seconds`` after a warm-up.

    CPU time, not time on the wall: what else the machine does then changes little.
    """
    clock, times = time.process_time, 1
    while True:
        began = clock()
        for _ in range(times):
            operation()
        spent = clock() - began
        if spent > seconds / 10:
            break
        times *= 2
    times = max(1, int(times * seconds / spent))
    gc.collect()
    gc.disable()
    began = clock()
    for _ in range(times):
        operation()
    spent = clock() - began
    gc.enable()
    return times / spent


def serve(tasks: Mapping[str, Callable[..., Operation]]) -> None:
    """Answer until standard input ends. A task gets the request's other members and returns what to repeat."""
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        task, seconds = tasks[request.pop("task")], request.pop("seconds")
        print(json.dumps({"rate": rate(task(**request), seconds)}), flush=True)
