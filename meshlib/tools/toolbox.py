"""Calls tools by name, and makes a result of whatever happens.

Owns that a model always gets one small JSON object: what happened, or whose fault it is that nothing did, and what to
do next. Never an exception, never a trace of the program.
"""

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from meshlib.errors import (
    AgentNotFound,
    AmbiguousName,
    DaemonNotRunning,
    IdentityInUse,
    KnockRefused,
    MeshError,
    NotConnected,
    PeerError,
    QueueFull,
    RegistryRefused,
    RelayRefused,
    ServiceError,
    StoreError,
    TaskFailed,
    TaskUnfinished,
    TransferFailed,
    TransportError,
    UsageError,
)
from meshlib.tools.arguments import Arguments
from meshlib.tools.definitions import BY_NAME, TOOLS
from meshlib.tools.desk import Desk, Permissions, Within, confirmed
from meshlib.tools.reading import Outcome
from meshlib.tools.results import DETAIL, RESULT, Entropy, as_json, short, visible

if TYPE_CHECKING:
    from meshlib.client.verbs import AnyMessage, Mesh

log = logging.getLogger("meshlib.tools")


class Call:
    """A tool that was called: its result, and what there is to do once the model has it.

    Whoever runs tools calls :meth:`confirm` after the result was handed over, or :meth:`take_back` if it could not be.
    Without either, the messages in it come again after a restart.

    Attributes:
        text: the result, JSON of at most ``RESULT`` characters.
        ok: whether the tool did what it was asked for.
    """

    def __init__(
        self, desk: Desk, text: str, ok: bool, complete: "list[AnyMessage]", shown: "list[AnyMessage]"
    ) -> None:
        self.text = text
        self.ok = ok
        self._desk = desk
        self._complete = complete
        self._shown = shown

    async def confirm(self) -> None:
        """The model has the result: the messages in it are confirmed."""
        messages, self._complete, self._shown = self._complete, [], []
        for message in messages:
            await confirmed(message)

    def take_back(self) -> None:
        """The model will never see the result: the messages in it are offered to its next call."""
        messages, self._complete, self._shown = self._shown, [], []
        self._desk.put_back(messages)


class Toolbox:
    """The tools of one model.

    Args:
        mesh: a client, or a daemon's.
        within: bounds a wait; see :class:`meshlib.tools.desk.Within`.
        permissions: which files the model may send.
        entropy: random bytes.
    """

    def __init__(self, mesh: "Mesh", within: Within, permissions: Permissions, entropy: Entropy) -> None:
        self._desk = Desk(mesh, within, permissions, entropy)

    async def call(self, name: str, arguments: Mapping[str, Any] | str | None) -> Call:
        """Call a tool.

        Args:
            name: one of the seven names, with or without prefix.
            arguments: the JSON object, or its text.
        """
        outcome = Outcome()
        try:
            result = await self._result(name, arguments, outcome)
        except BaseException:  # cancelled: whoever called is gone
            self._desk.put_back(outcome.taken)
            raise
        ok = bool(result["ok"])
        shown = [one for one in outcome.taken if ok and (one in outcome.handed_over or one in outcome.kept)]
        self._desk.put_back([one for one in outcome.taken if one not in shown])
        return Call(self._desk, bounded(result), ok, outcome.handed_over if ok else [], shown)

    async def _result(self, name: str, arguments: Mapping[str, Any] | str | None, outcome: Outcome) -> dict[str, Any]:
        tool = BY_NAME.get(name)
        if tool is None:
            known = ", ".join(one.name for one in TOOLS)
            return _failure("this call", f"there is no tool {short(name)!r}", f"Call one of {known}.")
        try:
            await tool.run(self._desk, Arguments(_members(arguments)), outcome)
        except MeshError as error:
            return self._explained(error)
        except Exception:
            # The outermost line of a call: whatever is wrong in here is for the log, not for a model.
            log.exception("%s failed", tool.name)
            return _failure(
                "this machine", "the tool failed", "Do not repeat the call. Tell the operator to look into the log."
            )
        return {"ok": True, **outcome.members, "next": outcome.next}

    def _explained(self, error: MeshError) -> dict[str, Any]:
        fault, advice = _blame(error)
        result = _failure(fault, _words(error), advice)
        foreign = _foreign(error)
        if foreign:
            # Why, in the words of a peer or a service: theirs, and marked as such.
            source = error.peer if isinstance(error, TaskFailed | KnockRefused) else "the service"
            result["reason"] = self._desk.fence.around(visible(foreign), source, 2 * DETAIL).fenced
        if isinstance(error, TaskFailed):
            result["error"] = short(error.error, 40)
        if isinstance(error, TaskUnfinished):
            result["state"] = str(error.state)
        return result


def _members(arguments: Mapping[str, Any] | str | None) -> Mapping[str, Any]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise UsageError("the arguments are no JSON: give one JSON object") from None
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise UsageError("the arguments must be one JSON object")
    return arguments


def _failure(fault: str, what: str, advice: str) -> dict[str, Any]:
    return {"ok": False, "fault": fault, "what": short(what, DETAIL), "next": advice}


def bounded(result: dict[str, Any]) -> str:
    """The text of a result. The tools keep to the bound by themselves; this is the wall behind them."""
    text = as_json(result)
    if len(text) <= RESULT:
        return text
    log.error("a result of %d characters was withheld", len(text))
    return as_json(_failure("this machine", "the result was too large", "Ask for less at a time."))


def _words(error: MeshError) -> str:
    """What happened, in words of our own."""
    match error:
        case KnockRefused():
            return f"{short(error.peer)} does not want to talk"
        case TaskFailed():
            return f"{short(error.peer)} did not do the task"
        case TransferFailed():
            return f"the file did not get there ({short(error.reason, 40)})"
        case RegistryRefused():
            return f"the registry answered {error.status}"
        case RelayRefused():
            return f"the relay refused the connection ({error.code})"
        case _:
            return str(error)


def _foreign(error: MeshError) -> str:
    match error:
        case KnockRefused() | RelayRefused():
            return error.reason
        case TaskFailed():
            return error.content
        case RegistryRefused():
            return error.detail
        case TransferFailed():
            return str(error)
        case _:
            return ""


_TASK_ADVICE = {
    "refused": "It does not take tasks of yours. Ask another agent, or tell the operator.",
    "busy": "It has too much to do. Ask again in a minute, or ask another agent.",
    "timeout": "It ran out of time. Ask for less, or give it more time.",
    "lost": "It was interrupted. Ask again.",
}


def _blame(error: MeshError) -> tuple[str, str]:
    """Whose fault an error is, and what the model should do."""
    match error:
        case AgentNotFound():
            return "this call", "Check the name with mesh_discover or mesh_peers, or wait until the agent is there."
        case AmbiguousName():
            return "this call", "Repeat the call with the DID of the one you mean as to_agent."
        case TaskFailed():
            return "the agent", _TASK_ADVICE.get(error.error, "Ask in other words, or ask another agent.")
        case KnockRefused():
            return "the agent", "Do not repeat the call. Ask another agent, or tell the operator."
        case TransferFailed():
            return "the agent", "Do not repeat the call at once. Ask the agent with mesh_send, or tell the operator."
        case PeerError():
            return "the agent", "What it sent cannot be used. Ask another agent, or tell the operator."
        case TaskUnfinished():
            return (
                "the agent",
                "The task was called off. Ask again with a longer timeout_seconds, or ask another agent.",
            )
        case QueueFull():
            return "this machine", "Too much waits to be delivered. Look at mesh_peers, and send again later."
        case IdentityInUse() | NotConnected() | StoreError():
            return "this machine", "Do not repeat the call. Tell the operator: mesh doctor shows what is wrong."
        case DaemonNotRunning():
            return "this machine", "Do not repeat the call. Tell the operator to start 'mesh daemon' for this agent."
        case UsageError():
            return "this call", "Correct the arguments and call again."
        case ServiceError():
            return "the relay or registry", "Try once more in a minute, then tell the operator."
        case TransportError():
            return "the network", "Try again in a minute. If it stays so, tell the operator: mesh doctor shows why."
        case _:
            return "this machine", "Tell the operator."
