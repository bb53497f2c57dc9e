"""A Python function as a runtime."""

from collections.abc import Awaitable, Callable
from inspect import isawaitable, iscoroutinefunction
from typing import cast

import anyio

from meshlib.responder.runtimes.protocol import Done, Failed, Outcome, Runtime, Task

Answer = str | Outcome
Function = Callable[[Task], Answer | Awaitable[Answer]]


class FunctionRuntime:
    """Calls a function with the task; what it returns is the answer.

    A coroutine function runs in the event loop and is cancelled with the task. A plain one runs in a worker thread; a
    thread cannot be stopped, so the task is answered without it and it runs to its own end.

    Args:
        function: takes a :class:`Task`; returns a text, a :class:`Done` or a :class:`Failed`.
    """

    def __init__(self, function: Function) -> None:
        self._function = function

    @property
    def name(self) -> str:
        """The function's name."""
        return getattr(self._function, "__qualname__", type(self._function).__name__)

    async def run(self, task: Task) -> Outcome:
        """Call the function. What it raises is for the caller to report, and never an answer."""
        if iscoroutinefunction(self._function):
            answer = await self._function(task)
        else:
            answer = await anyio.to_thread.run_sync(self._function, task, abandon_on_cancel=True)
            if isawaitable(answer):
                answer = await answer
        match answer:
            case Done() | Failed():
                return answer
            case str():
                return Done(answer)
            case _:
                kind = type(answer).__name__
                return Failed("the agent gave no answer", f"{self.name} returned {kind}, not a text, Done or Failed")


def as_runtime(given: Runtime | Function) -> Runtime:
    """A runtime as it is; a function as a runtime."""
    return cast(Runtime, given) if hasattr(given, "run") else FunctionRuntime(given)
