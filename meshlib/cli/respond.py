"""``mesh respond``: an agent that answers while nobody drives it."""

import json
import os
import signal
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import anyio

from meshlib.cli.exits import Exit
from meshlib.cli.options import Settings, chosen_option, settings_from
from meshlib.cli.output import Console, Style, visible
from meshlib.client.mesh import MeshClient
from meshlib.config import ClientConfig
from meshlib.daemon.server import serve_daemon
from meshlib.errors import InvalidValue, StoreError
from meshlib.responder.policy import AfterCrash, Policy
from meshlib.responder.runtimes.named import NAMES, runtime_named
from meshlib.responder.runtimes.presets import Options, Tools
from meshlib.responder.runtimes.protocol import Runtime
from meshlib.responder.service import Note, Responder

_OFF = ("0", "false", "no", "off")
_ON = ("", "1", "true", "yes", "on")
_STYLES = {"answered": Style.GOOD, "failed": Style.BAD, "refused": Style.WARN}


def respond(arguments: Namespace, environment: Mapping[str, str], console: Console) -> int:
    """Answer tasks until Ctrl-C or SIGTERM."""
    settings = settings_from(arguments, environment)
    runtime = _runtime(arguments, environment, settings)
    policy = _policy(arguments, environment)
    config = replace(settings.client(), incoming=chosen_option(arguments, environment, "incoming"))
    return anyio.run(_serve, config, runtime, policy, _reasoning_log(arguments.reasoning_log), console)


async def _serve(
    config: ClientConfig,
    runtime: Runtime,
    policy: Policy,
    keep_reasoning: Callable[[str, str], None] | None,
    console: Console,
) -> int:
    def watch(note: Note) -> None:
        _show(note, console)

    spool = _spool(config.store)
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with (
            MeshClient(config) as client,
            # The tools of a model that works on a task are other processes of this identity.
            serve_daemon(client),
            Responder(client, runtime, policy, watch=watch, spool=spool, keep_reasoning=keep_reasoning) as responder,
            anyio.create_task_group() as tasks,
        ):

            async def stop_on_signal() -> None:
                async for _ in signals:
                    console.note("ending: running tasks have a moment left", event="ending")
                    responder.stop()

            tasks.start_soon(stop_on_signal)
            givers = "everyone" if policy.everyone else ", ".join(map(visible, policy.tasks_from)) or "nobody (--allow)"
            console.note(
                f"answering with {runtime.name} as {config.name or 'an agent without a name'}, {client.did}\n"
                f"tasks are taken from {givers} (Ctrl-C stops)",
                event="responding",
                did=str(client.did),
                name=config.name,
                runtime=runtime.name,
                tasks_from="everyone" if policy.everyone else list(policy.tasks_from),
            )
            await responder.wait()
            tasks.cancel_scope.cancel()
    return Exit.OK


def _show(note: Note, console: Console) -> None:
    if console.json:
        console.emit(
            event="task",
            what=note.what,
            peer=str(note.peer),
            request_id=note.request_id,
            seconds=round(note.seconds, 3),
            detail=note.detail,
        )
        return
    took = f"  {note.seconds:.1f} s" if note.seconds else ""
    detail = f"  {visible(note.detail)}" if note.detail else ""
    when = console.paint(time.strftime("%H:%M:%S"), Style.DIM)
    what = console.paint(f"{note.what:<8}", _STYLES.get(note.what, Style.NAME))
    console.say(f"{when}  {what}  {note.peer}  {visible(note.request_id)}{took}{detail}")


def _spool(store: Path | str | None) -> Path:
    assert store is not None, "every command has a store"
    return Path(store).expanduser() / "outgoing"


# --- options ---------------------------------------------------------------------------------------------------------


def _runtime(arguments: Namespace, environment: Mapping[str, str], settings: Settings) -> Runtime:
    given: list[str] = arguments.runtime
    chosen = chosen_option(Namespace(), environment, "responder")
    if chosen is not None and chosen.lower() in _OFF:
        raise InvalidValue("the responder is switched off by MESH_RESPONDER or KARS_MESH_AUTO_RESPONDER")
    if not given and chosen is not None and chosen.lower() not in _ON:
        given = [chosen]
    if not given:
        raise InvalidValue(f"say what answers: {', '.join(NAMES)}, a URL, or a command after --")
    named = len(given) == 1 and (given[0] in NAMES or given[0].startswith(("http://", "https://")))
    api_key = environment.get(arguments.api_key_env) if arguments.api_key_env else None
    if arguments.api_key_env and api_key is None:
        raise InvalidValue(f"--api-key-env: there is no variable {arguments.api_key_env}")
    options = Options(
        program=arguments.program,
        model=arguments.model,
        base_url=arguments.base_url,
        api_key=api_key,
        tools=Tools(arguments.tools),
        store=settings.store,
    )
    missing = [name for name in arguments.env if name not in environment]
    if missing:
        raise InvalidValue(f"--env: there is no variable {', '.join(missing)}")
    return runtime_named(
        given[0] if named else given,
        options,
        environment,
        arguments.env,
        spool=_spool(settings.store),
    )


def _policy(arguments: Namespace, environment: Mapping[str, str]) -> Policy:
    timeout = arguments.timeout
    if timeout is None:
        written = chosen_option(Namespace(), environment, "worker_timeout")
        try:
            timeout = float(written) if written is not None else Policy.timeout
        except ValueError:
            raise InvalidValue(
                f"MESH_WORKER_TIMEOUT or KARS_MESH_WORKER_TIMEOUT_S must be seconds, not {written!r}"
            ) from None
    return Policy(
        tasks_from=tuple(arguments.allow or ()),
        everyone=arguments.allow_everyone,
        concurrency=arguments.concurrency,
        queue=arguments.queue,
        timeout=timeout,
        after_crash=AfterCrash(arguments.after_crash),
    )


def _reasoning_log(file: str | None) -> Callable[[str, str], None] | None:
    """Appends a line of JSON per answer to a file that only this user reads."""
    if file is None:
        return None
    path = Path(file)
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError as error:
        raise StoreError(f"--reasoning-log {file} cannot be written: {error.strerror}") from error

    def keep(task: str, reasoning: str) -> None:
        line = json.dumps({"time": time.time(), "task": task, "reasoning": reasoning})
        with path.open("a", encoding="utf-8") as opened:
            opened.write(line + "\n")

    return keep
