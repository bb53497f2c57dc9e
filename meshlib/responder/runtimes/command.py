"""Any program as a runtime: a fresh folder, a clean environment, the prompt on standard input, the answer printed.

A :class:`Recipe` says how one program is called and when its output counts as an answer; the presets in
:mod:`meshlib.responder.runtimes.presets` are recipes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from meshlib.errors import InvalidValue
from meshlib.responder.runtimes.outbox import collect
from meshlib.responder.runtimes.processes import Finished, Workplace, run, scrubbed, workplace
from meshlib.responder.runtimes.prompt import prompt_for
from meshlib.responder.runtimes.protocol import Done, Failed, Outcome, Task
from meshlib.wire.envelopes import Telemetry

HOPS_VARIABLE = "MESH_HOPS"
"""Tells tools how often the work has been passed on already."""


@dataclass(frozen=True, slots=True)
class Text:
    """What a program said."""

    text: str
    telemetry: Telemetry = Telemetry()  # noqa: RUF009 - frozen


@dataclass(frozen=True, slots=True)
class Call:
    """How to call a program for one task."""

    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Besides the scrubbed one."""
    files: Mapping[Path, str] = field(default_factory=dict)
    """Written before it starts, 0600."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One program."""

    name: str
    call: Callable[[Workplace, Task], Call]
    read: Callable[[Finished, Workplace], Text | Failed]
    """Tells an answer from an error. Programs exit with 0 in either case."""


class CommandRuntime:
    """Runs a program for each task.

    Args:
        recipe: which, and how.
        environment: where the variables that are let through come from.
        let_through: their names.
        spool: folder that takes files which belong to answers. ``None``: such files are left behind.
    """

    def __init__(
        self,
        recipe: Recipe,
        environment: Mapping[str, str],
        let_through: Sequence[str] = (),
        *,
        spool: Path | None = None,
    ) -> None:
        self._recipe = recipe
        self._environment = environment
        self._let_through = tuple(let_through)
        self._spool = spool

    @property
    def name(self) -> str:
        """The program's name."""
        return self._recipe.name

    async def run(self, task: Task) -> Outcome:
        """Run the program on a task. Cancelled, it and everything it started is ended first."""
        async with workplace() as place:
            call = self._recipe.call(place, task)
            for path, text in call.files.items():
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.touch(mode=0o600)
                path.write_text(text, encoding="utf-8")
            environment = {
                **scrubbed(self._environment, place, self._let_through),
                HOPS_VARIABLE: str(task.hops),
                **call.environment,
            }
            prompt = prompt_for(task).encode("utf-8", "replace")
            finished = await run(call.argv, folder=place.work, environment=environment, stdin=prompt)
            return await self._outcome(finished, place)

    async def _outcome(self, finished: Finished, place: Workplace) -> Outcome:
        if finished.overflowed:
            return Failed("the agent's answer was far too long", f"{self.name} printed without end and was stopped")
        said = self._recipe.read(finished, place)
        if isinstance(said, Failed):
            return said
        if not said.text.strip():
            return Failed("the agent gave an empty answer", f"{self.name} exited with 0 and said nothing")
        files: tuple[Path, ...] = ()
        if self._spool is not None:
            files = await anyio.to_thread.run_sync(collect, place, self._spool)
        return Done(said.text.strip(), said.telemetry, files)


def any_command(argv: Sequence[str]) -> Recipe:
    """A program of the operator's: it gets the prompt on standard input and prints the answer.

    An argument ``{prompt_file}`` is replaced by the path of a file that holds the prompt as well.

    Raises:
        InvalidValue: no program is named.
    """
    if not argv or not argv[0]:
        raise InvalidValue("name the command that answers, as in: mesh respond -- my-agent --stdin")

    def call(place: Workplace, task: Task) -> Call:
        prompt_file = place.root / "prompt"
        named = [argument.replace("{prompt_file}", str(prompt_file)) for argument in argv]
        return Call(named, files={prompt_file: prompt_for(task)} if named != list(argv) else {})

    return Recipe(Path(argv[0]).name, call, read_stdout)


def read_stdout(finished: Finished, place: Workplace) -> Text | Failed:
    """The answer is what was printed, if the exit status is 0."""
    failure = failed_status(finished)
    return failure or Text(finished.stdout.decode("utf-8", "replace"))


def failed_status(finished: Finished) -> Failed | None:
    """Why a program that did not exit with 0 gave no answer. What it said about it is for the operator only."""
    if finished.status == 0:
        return None
    return Failed("the agent's program failed", f"exit status {finished.status}: {last_line(finished.stderr)}")


def last_line(text: bytes) -> str:
    """The last thing a program said. No more: before it, some print what they were asked."""
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"
