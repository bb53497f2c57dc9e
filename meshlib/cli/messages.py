"""``mesh send``, ``mesh listen`` and ``mesh discover``."""

import base64
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import anyio

from meshlib.cli.connect import features_of, open_mesh
from meshlib.cli.exits import Exit
from meshlib.cli.files import received_file
from meshlib.cli.options import settings_from
from meshlib.cli.output import Console, Style, as_line, indented, visible
from meshlib.client.events import Connected, DeliveryState, Disconnected, FaultFound
from meshlib.client.mesh import Agent, MeshClient
from meshlib.client.registry import RegistryClient, RegistryOptions
from meshlib.client.verbs import AnyMessage, Mesh
from meshlib.config import Limits, accept_everyone, accept_only
from meshlib.daemon.address import socket_path
from meshlib.daemon.client import DaemonClient
from meshlib.errors import DaemonNotRunning, InvalidValue, MeshError, RelayRefused
from meshlib.identity import parse_did
from meshlib.wire.encoding import parse_json

# --- send ------------------------------------------------------------------------------------------------------------


def send(arguments: Namespace, environment: Mapping[str, str], console: Console) -> int:
    """Send one message."""
    settings = settings_from(arguments, environment)
    payload = _payload(arguments)

    async def main() -> int:
        async with open_mesh(settings, patience=arguments.timeout) as mesh:
            return await _deliver(mesh, arguments, payload, console)

    return anyio.run(main)


async def _deliver(mesh: MeshClient | DaemonClient, arguments: Namespace, payload: object, console: Console) -> int:
    wanted = DeliveryState(arguments.wait or DeliveryState.RELAYED)
    receipt = None
    try:
        with anyio.fail_after(arguments.timeout):
            receipt = await mesh.send(arguments.peer, payload)
            if wanted is not DeliveryState.RELAYED and "receipts" not in await features_of(mesh):
                # Such a relay never says what became of a message: waiting for it would be waiting for nothing.
                console.note(
                    "this relay sends no receipts: the message is relayed, more cannot be learned",
                    event="no_receipts",
                )
                wanted = DeliveryState.RELAYED
            state = await receipt.wait(wanted)
    except TimeoutError:
        what = "it stays in the outbox and goes out when this agent is online again" if receipt else "nothing was sent"
        state_now = receipt.state if receipt else "not even queued"
        console.fail(f"not {wanted} within {arguments.timeout:g} s ({state_now}): {what}", Exit.TIMEOUT, "Timeout")
        return Exit.TIMEOUT
    if console.json:
        console.emit(id=str(receipt.id), peer=str(receipt.peer), state=str(state))
    else:
        console.say(f"{console.paint(state, Style.GOOD)}   to {receipt.peer}   {receipt.id}")
    return Exit.REFUSED if state is DeliveryState.EXPIRED else Exit.OK


def _payload(arguments: Namespace) -> object:
    """The message: text when it is UTF-8, bytes otherwise, or any JSON value on request."""
    if arguments.file is not None:
        if arguments.text is not None:
            raise InvalidValue("give either a text or --file, not both")
        try:
            with Path(arguments.file).open("rb") as file:
                raw = file.read(Limits().payload + 1)
        except OSError as error:
            raise InvalidValue(f"--file {arguments.file} cannot be read: {error.strerror}") from error
    elif arguments.text is None or arguments.text == "-":
        if arguments.text is None and sys.stdin.isatty():
            raise InvalidValue("say what to send: a text, --file PATH, or - for standard input")
        raw = sys.stdin.buffer.read(Limits().payload + 1).removesuffix(b"\n")
        if arguments.text is None and not raw:
            raise InvalidValue("standard input is empty: say what to send, or send an empty message with ''")
    else:
        return parse_json(arguments.text) if arguments.json_payload else arguments.text
    if len(raw) > Limits().payload:
        raise InvalidValue(f"a message has at most {Limits().payload} bytes: send it in parts")
    if arguments.json_payload:
        return parse_json(raw)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


# --- listen ----------------------------------------------------------------------------------------------------------


def listen(arguments: Namespace, environment: Mapping[str, str], console: Console) -> int:
    """Print messages, each confirmed once it is out."""
    settings = settings_from(arguments, environment)
    policy = accept_only(*(parse_did(one) for one in arguments.only)) if arguments.only else accept_everyone

    async def main() -> int:
        failure: list[Exception] = []
        code = Exit.OK
        async with open_mesh(settings, policy, receiving=True) as mesh:
            ours = isinstance(mesh, MeshClient)
            if arguments.only and not ours:
                raise InvalidValue("a daemon runs and decides itself who may knock: give --only to 'mesh daemon'")
            console.note(
                f"listening as {settings.name or 'an agent without a name'}, {mesh.did}"
                f"{'' if ours else ', by way of the daemon'} (Ctrl-C stops)",
                event="listening",
                did=str(mesh.did),
                name=settings.name,
                daemon=not ours,
            )
            async with anyio.create_task_group() as tasks:
                if isinstance(mesh, MeshClient):
                    tasks.start_soon(watch, mesh, console, failure, tasks.cancel_scope)
                try:
                    code = await _print_messages(mesh, arguments, console)
                except (MeshError, OSError) as error:
                    failure.append(error)  # raised outside of the group, as itself
                tasks.cancel_scope.cancel()
        if failure:
            raise failure[0]
        return code

    return anyio.run(main)


async def _print_messages(mesh: Mesh, arguments: Namespace, console: Console) -> Exit:
    printed = 0
    while arguments.count is None or printed < arguments.count:
        message = None
        with anyio.move_on_after(arguments.timeout):
            message = await mesh.receive()
        if message is None:
            waited = f"no message within {arguments.timeout:g} s"
            console.fail(waited, Exit.TIMEOUT, "Timeout")
            return Exit.TIMEOUT
        _print(message, console)
        await message.ack()  # printed and flushed: a process that dies before this prints it again
        printed += 1
    return Exit.OK


def _print(message: AnyMessage, console: Console) -> None:
    payload = message.payload
    if console.json:
        content = {"bytes": base64.b64encode(payload).decode()} if isinstance(payload, bytes) else {"payload": payload}
        console.emit(
            **{"from": str(message.sender)},
            id=str(message.id),
            **content,
            encrypted=message.encrypted,
            redelivered=message.redelivered,
        )
        return
    notice = received_file(payload)
    if notice is not None:
        text = indented(notice, " " * 10)
    elif isinstance(payload, bytes):
        text = f"<{len(payload)} bytes; --json shows them>"
    else:
        text = indented(payload if isinstance(payload, str) else as_line(payload), " " * 10)
    marks = [] if message.encrypted else [console.paint("not encrypted", Style.BAD)]
    marks += [console.paint("again", Style.WARN)] if message.redelivered else []
    head = [console.paint(time.strftime("%H:%M:%S"), Style.DIM), console.paint(visible(message.sender), Style.NAME)]
    console.say(f"{'  '.join(head + marks)}\n{' ' * 10}{text}")


async def watch(client: MeshClient, console: Console, failure: list[Exception], scope: anyio.CancelScope) -> None:
    """Tell when the connection goes and comes; end when it will not come again."""
    async for event in client.events():
        match event:
            case Disconnected() if not event.retrying:
                failure.append(RelayRefused(event.code, event.reason))
                scope.cancel()
                return
            case Disconnected():
                reason = visible(event.reason) or "no reason given"
                console.note(
                    f"the relay is gone ({event.code}, {reason}); trying again", event="disconnected", code=event.code
                )
            case Connected():
                console.note("connected again", event="connected")
            case FaultFound():
                console.note(
                    f"not taken ({event.kind}): {visible(event.detail)}",
                    event="fault",
                    kind=event.kind,
                    detail=event.detail,
                    peer=event.peer,
                )


# --- discover --------------------------------------------------------------------------------------------------------


def discover(arguments: Namespace, environment: Mapping[str, str], console: Console) -> int:
    """List agents with a capability. Needs no identity."""
    settings = settings_from(arguments, environment)

    async def main() -> list[Agent]:
        with suppress(DaemonNotRunning):
            async with DaemonClient(socket_path(settings.store)) as mesh:
                return await mesh.discover(arguments.capability, arguments.limit)
        options = RegistryOptions(tls=settings.tls, proxy=settings.proxy)
        async with RegistryClient(settings.registry_url, options=options) as registry:
            found = await registry.discover(arguments.capability, arguments.limit)
        return [Agent(parse_did(one.did), one.capabilities, one.online, one.last_seen) for one in found]

    agents = anyio.run(main)
    if console.json:
        for agent in agents:
            console.emit(
                did=str(agent.did),
                capabilities=list(agent.capabilities),
                online=agent.online,
                last_seen=agent.last_seen,
            )
    elif agents:
        rows = [[agent.did, _presence(agent), ", ".join(agent.capabilities)] for agent in agents]
        console.table(rows, (Style.NAME,), indent="")
    if not agents:
        console.fail(f"no agent has the capability {arguments.capability!r}", Exit.REFUSED, "AgentNotFound")
    return Exit.OK if agents else Exit.REFUSED


def _presence(agent: Agent) -> str:
    if agent.online:
        return "online"
    if agent.last_seen is None:
        return "never seen"
    return f"seen {duration(time.time() - agent.last_seen)} ago"


def duration(seconds: float) -> str:
    """A span of time in the largest unit that fits, rounded down."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"
