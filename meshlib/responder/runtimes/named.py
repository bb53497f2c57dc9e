"""Runtimes by what an operator calls them."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from meshlib.errors import InvalidValue
from meshlib.responder.runtimes.command import CommandRuntime, any_command
from meshlib.responder.runtimes.hermes_inprocess import HermesRuntime
from meshlib.responder.runtimes.http import Endpoint, HttpRuntime, Shape
from meshlib.responder.runtimes.presets import PRESETS, Options, preset
from meshlib.responder.runtimes.protocol import Runtime

PROGRAMS = {"hermes": "python3"}
"""Programs of presets that are called otherwise."""
IN_PROCESS = "hermes-inprocess"
NAMES = (*PRESETS, IN_PROCESS)
"""Everything that has a name; besides them URLs and commands."""


def runtime_named(
    name: str | Sequence[str],
    options: Options,
    environment: Mapping[str, str],
    let_through: Sequence[str] = (),
    *,
    spool: Path | None = None,
) -> Runtime:
    """A runtime by its name, an endpoint by its URL, or a command by its arguments.

    Args:
        name: one of :data:`PRESETS`, ``hermes-inprocess``, an ``http://`` or ``https://`` URL, or an argv.
        options: model, tools and the like.
        environment: where the variables that are let through come from.
        let_through: names of variables the runtime may see.
        spool: folder for files that belong to answers.
    Raises:
        InvalidValue: there is no such runtime, or it cannot work as it is asked for.
    """
    if not isinstance(name, str):
        _refuse(options, "a command", "program", "model", "base_url", "api_key", "tools")
        recipe = any_command(name)
        _find(name[0], environment)
    elif name.startswith(("http://", "https://")):
        _refuse(options, "an endpoint", "program", "base_url", "tools")
        headers = {"authorization": f"Bearer {options.api_key}"} if options.api_key else {}
        shape = Shape.TASK if options.model is None else Shape.CHAT
        return HttpRuntime(Endpoint(name, shape, options.model, headers))
    elif name == IN_PROCESS:
        return HermesRuntime(options)
    else:
        recipe = preset(name, options)
        _find(options.program or PROGRAMS.get(name, name), environment)
    return CommandRuntime(recipe, environment, let_through, spool=spool)


def _refuse(options: Options, kind: str, *names: str) -> None:
    """Refuse what would be ignored: an operator who locks or opens tools must not be left to believe it."""
    given = [name for name in names if getattr(options, name) != getattr(Options(), name)]
    if given:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in given).replace("--api-key", "--api-key-env")
        raise InvalidValue(f"{kind} is called as it is: leave out {words}, or say it in its own way")


def _find(program: str, environment: Mapping[str, str]) -> None:
    """Refuse at the start what could only fail at the first task."""
    if shutil.which(program, path=environment.get("PATH")) is None:
        raise InvalidValue(
            f"there is no program {program!r}: install it, or name its path; runtimes: {', '.join(NAMES)}"
        )
