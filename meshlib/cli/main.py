"""The parser of ``mesh``, and what happens to every error. Commands are loaded when they are called."""

import argparse
import contextlib
import io
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn, TextIO, get_args

from meshlib.cli.exits import MEANINGS, Exit, exit_for
from meshlib.cli.options import VARIABLES, chosen_option
from meshlib.cli.output import Console
from meshlib.errors import MeshError
from meshlib.logs import LogStyle, handler_for

RUNTIMES = ("hermes", "hermes-inprocess", "claude", "codex", "openclaw", "llm")
"""Spelled out, so that no command loads them to show its help."""

Command = Callable[[argparse.Namespace, Mapping[str, str], Console], int]

_EPILOG = "exit status: " + ", ".join(f"{code.value} {meaning}" for code, meaning in MEANINGS)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    intermixed = False
    """Take options between a required and an optional argument, too: ``mesh send bob --wait stored hello``."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # overloads of the base
        if not self.intermixed:
            return super().parse_known_args(args, namespace)
        self.intermixed = False  # the intermixed parser calls us again, for one kind of arguments at a time
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.intermixed = True

    def error(self, message: str) -> NoReturn:
        self.exit(Exit.USAGE, f"{self.prog}: {message} (try: {self.prog} --help)\n")


def run(argv: Sequence[str], environment: Mapping[str, str], out: TextIO, err: TextIO) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name.
        environment: where options that are not given are looked up.
    Returns:
        The exit status; see :class:`meshlib.cli.exits.Exit`.
    """
    for stream in (out, err):
        if isinstance(stream, io.TextIOWrapper):  # a locale that cannot spell a character must not end the command
            stream.reconfigure(errors="backslashreplace")
    arguments = parser().parse_args(argv)
    console = Console(out, err, environment, json=getattr(arguments, "json", False))
    _log_to(err, arguments, environment)
    try:
        return _command(arguments.command)(arguments, environment, console)
    except MeshError as error:
        code = exit_for(error)
        console.fail(str(error), code, type(error).__name__)
        return code
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output once more at its end: let that go nowhere.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        return Exit.BROKEN_PIPE


def _log_to(stream: TextIO, arguments: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Errors only, unless somebody wants to see more; of foreign libraries never what they print of frames."""
    verbose = getattr(arguments, "verbose", False)
    style = chosen_option(arguments, environment, "log_format")
    if style not in (None, *get_args(LogStyle)):
        style = None  # a mistake in a variable must not end commands that log nothing
    json = style == "json" or (style is None and getattr(arguments, "json", False))
    handler = handler_for(stream, "json" if json else "text")
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, handlers=[handler])
    if verbose:
        logging.getLogger("meshlib").setLevel(logging.DEBUG)


def _command(path: str) -> Command:
    module, function = path.split(":")
    command: Command = getattr(import_module(f"meshlib.cli.{module}"), function)
    return command


def parser() -> _Parser:
    """The whole command line."""
    common = _common()
    top = _Parser(
        prog="mesh",
        description="End-to-end encrypted messages between AI agents.",
        epilog=_EPILOG,
        parents=[common],
        formatter_class=_Formatter,
    )
    top.add_argument("--version", action="version", version=f"mesh {_version()}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str, summary: str, command: str, *, into: "argparse._SubParsersAction[_Parser]" = commands
    ) -> _Parser:
        one = into.add_parser(
            name, help=summary, description=summary, epilog=_EPILOG, parents=[common], formatter_class=_Formatter
        )
        one.set_defaults(command=command)
        return one

    up = add("up", "start a relay and a registry on this machine", "up:up")
    up.add_argument("--data", metavar="FOLDER", help="where both keep their SQLite files")
    up.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    up.add_argument("--relay-port", type=_port, default=8083, help="0: a free one (default: %(default)s)")
    up.add_argument("--registry-port", type=_port, default=8082, help="0: a free one (default: %(default)s)")
    up.add_argument("--tls-cert", metavar="FILE", help="both speak TLS with this certificate, read anew on SIGHUP")
    up.add_argument("--tls-key", metavar="FILE", help="its key")
    up.add_argument("--tls-client-ca", metavar="FILE", help="require client certificates signed by these")
    up.add_argument("--allow-legacy", action="store_true", help="admit agents of the SDK 4.0.0, which prove nothing")

    identity = commands.add_parser("identity", help="make or show this agent's identity", formatter_class=_Formatter)
    verbs = identity.add_subparsers(metavar="VERB", required=True)
    add("create", "make an identity, unless there is one", "identity:create", into=verbs)
    add("show", "show this agent's DID and public key", "identity:show", into=verbs)

    send = add("send", "send a message", "messages:send")
    send.intermixed = True
    send.add_argument("peer", help="display name or DID")
    send.add_argument("text", nargs="?", help="the message; - or nothing reads standard input")
    send.add_argument("--file", metavar="PATH", help="send what is in a file")
    send.add_argument("--json-payload", action="store_true", help="the message is JSON: send the value, not its text")
    send.add_argument(
        "--wait", choices=("stored", "delivered"), help="until the relay has it on disk, or the peer has it"
    )
    send.add_argument("--timeout", type=_seconds, default=30.0, metavar="S", help="seconds to wait (default: 30)")

    send_file = add("send-file", "send a file of any size", "files:send_file")
    send_file.add_argument("peer", help="display name or DID")
    send_file.add_argument("path", help="the file; pack folders into an archive first")
    send_file.add_argument("--description", default="", metavar="TEXT", help="what it is, in words")
    send_file.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="until the peer has it and its hash fits; else this agent sends it when it is next online",
    )
    send_file.add_argument(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="S",
        help="give up after S seconds without progress (default: 60)",
    )

    listen = add("listen", "print messages as they come", "messages:listen")
    listen.add_argument("--count", type=_count, metavar="N", help="stop after N messages")
    listen.add_argument("--timeout", type=_seconds, metavar="S", help="stop when none came for S seconds")
    listen.add_argument(
        "--incoming", metavar="FOLDER", help=f"take files of peers, into this folder [{VARIABLES['incoming'][0]}]"
    )
    listen.add_argument("--only", action="append", metavar="DID", help="let nobody else knock; may be repeated")

    respond = add("respond", "answer tasks of other agents with a runtime", "respond:respond")
    respond.add_argument(
        "runtime",
        nargs="*",
        help=f"{', '.join(RUNTIMES)}, a URL, or a command after -- that reads the task on standard input",
    )
    givers = respond.add_mutually_exclusive_group()
    givers.add_argument("--allow", action="append", metavar="PEER", help="may give tasks; may be repeated")
    givers.add_argument("--allow-everyone", action="store_true", help="whoever can reach this agent may give tasks")
    respond.add_argument("--concurrency", type=_count, metavar="N", default=2, help="tasks at a time (default: 2)")
    respond.add_argument("--queue", type=_count, metavar="N", default=100, help="tasks that may wait (default: 100)")
    respond.add_argument("--timeout", type=_seconds, metavar="S", help="seconds for one task (default: 1500)")
    respond.add_argument(
        "--after-crash",
        choices=("fail", "rerun"),
        default="fail",
        help="what becomes of a task that ran when this process died (default: fail)",
    )
    respond.add_argument(
        "--tools",
        choices=("none", "mesh", "own"),
        default="none",
        help="what the runtime's model may do: nothing, talk to other agents, or whatever it brings (default: none)",
    )
    respond.add_argument("--model", metavar="NAME", help="the model it uses")
    respond.add_argument("--base-url", metavar="URL", help="its model server")
    respond.add_argument("--api-key-env", metavar="NAME", help="the variable that holds the model server's key")
    respond.add_argument("--program", metavar="PATH", help="the runtime's program; for hermes its Python")
    respond.add_argument(
        "--env", action="append", metavar="NAME", default=[], help="a variable the runtime may see; may be repeated"
    )
    respond.add_argument(
        "--incoming", metavar="FOLDER", help=f"take files of peers, into this folder [{VARIABLES['incoming'][0]}]"
    )
    respond.add_argument("--reasoning-log", metavar="FILE", help="keep there what models thought; it never travels")

    ask = add("ask", "have an agent do something, and print its answer", "ask:ask")
    ask.intermixed = True
    ask.add_argument("peer", help="display name or DID")
    ask.add_argument("text", nargs="?", help="what is wanted; - or nothing reads standard input")
    ask.add_argument("--also", action="append", metavar="PEER", help="ask this one, too; may be repeated")
    ask.add_argument("--timeout", type=_seconds, default=1500.0, metavar="S", help="seconds to wait (default: 1500)")

    discover = add("discover", "find agents by capability or name", "messages:discover")
    discover.add_argument("capability")
    discover.add_argument("--limit", type=_count, default=50, metavar="N", help="(default: %(default)s)")

    daemon = add("daemon", "own the identity, for every process of this user", "daemon:daemon")
    daemon.add_argument(
        "--incoming", metavar="FOLDER", help=f"take files of peers, into this folder [{VARIABLES['incoming'][0]}]"
    )
    daemon.add_argument("--only", action="append", metavar="DID", help="let nobody else knock; may be repeated")
    daemon.add_argument("--stop", action="store_true", help="end the daemon that runs")
    mcp = add("mcp", "offer the mesh to a model as an MCP server on standard input and output", "mcp:mcp")
    mcp.add_argument("--files", action="append", metavar="FOLDER", help="let the model send files of it; repeatable")
    mcp.add_argument("--kars", action="store_true", help="name the tools kars_mesh_send and so on")
    mcp.add_argument(
        "--standalone", action="store_true", help="own the identity, instead of using the daemon that does"
    )

    plugin = add("hermes-plugin", "put the tools into a Hermes that has not installed this package", "hermes:install")
    plugin.add_argument("--hermes-home", metavar="FOLDER", help="default: $HERMES_HOME, else ~/.hermes")

    add("status", "show registry, relay, identity and store at a glance", "status:status")
    trace = add("trace", "follow one message by its id", "trace:trace")
    trace.add_argument("id", help="the message's id, as 'mesh send' and 'mesh listen --json' print it")
    trace.add_argument(
        "--log", nargs="+", action="extend", metavar="FILE", help="JSON logs of sender, relay or recipient; - reads one"
    )
    live = add("top", "watch relay and registry live", "top:top")
    live.add_argument("--once", action="store_true", help="show one table and end")
    live.add_argument("--interval", type=_seconds, default=1.0, metavar="S", help="seconds between looks (default: 1)")
    doctor = add("doctor", "check the way to registry and relay step by step", "doctor:doctor")
    doctor.add_argument("--timeout", type=_seconds, default=10.0, metavar="S", help="seconds per step (default: 10)")
    return top


def _common() -> _Parser:
    """Options every command takes, before or after its name."""
    common = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("options everywhere")
    for option, metavar, text in (
        ("relay", "URL", "ws://, wss:// or ws+unix:// address of the relay"),
        ("registry", "URL", "http://, https:// or http+unix:// address of the registry"),
        ("name", "NAME", "this agent's display name"),
        ("store", "FOLDER", "keeps identity and messages; default: ~/.local/share/mesh/NAME"),
        ("proxy", "URL", "http://, https:// or socks5:// proxy; default: HTTPS_PROXY and the like"),
        ("ca", "FILE", "certificates to trust besides the system's"),
        ("cert", "FILE", "client certificate, for servers that want one"),
        ("key", "FILE", "its key, if it is in a file of its own"),
    ):
        group.add_argument(f"--{option}", metavar=metavar, help=f"{text} [{VARIABLES[option][0]}]")
    group.add_argument(
        "--passphrase-file", metavar="FILE", help="its first line seals the store [MESH_PASSPHRASE_FILE]"
    )
    group.add_argument("--json", action="store_true", help="for machines: one JSON object per line")
    group.add_argument("--verbose", action="store_true", help="log every step to standard error, never what is said")
    group.add_argument(
        "--log-format",
        choices=get_args(LogStyle),
        help=f"of log lines; default: as --json says [{VARIABLES['log_format'][0]}]",
    )
    return common


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)


def _version() -> str:
    try:
        return version("agent-meshlib")
    except PackageNotFoundError:
        return "(not installed)"


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65_536):
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"a positive whole number is needed, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"a positive number of seconds is needed, not {text!r}")
    return seconds
