"""Imports point up the table only. The table is this test; docs/architecture.md explains it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "meshlib": ROOT / "meshlib",
    "mesh_relay": ROOT / "relay/mesh_relay",
    "mesh_registry": ROOT / "registry/mesh_registry",
}


@dataclass(frozen=True)
class Row:
    """One layer: which modules it holds and what they may import besides their own layer and the standard library."""

    modules: tuple[str, ...]
    ours: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    """Parts of the standard library it must not touch."""


IO = ("socket", "asyncio", "threading", "subprocess", "sqlite3", "urllib.request", "http.client", "selectors")
CLOCK_AND_CHANCE = ("time", "random", "secrets", "os")

IDENTITY = ("meshlib.crypto", "meshlib.identity", "meshlib.errors", "meshlib.places")
SESSION = ("meshlib.session", "meshlib.snapshot")
WIRE = ("meshlib.wire",)
SERVING = ("meshlib.serving",)
LENT = ("meshlib.clock", "meshlib.buckets", "meshlib.logs", "meshlib.prometheus", "meshlib.process", *SERVING)
"""What servers borrow besides identities and the wire."""
LOGS = ("meshlib.logs",)
NUMBERS = ("meshlib.prometheus", "meshlib.process")
STATS = ("meshlib.client.stats",)
CORE_VALUES = (
    *STATS,
    "meshlib.client.__init__",
    "meshlib.clock",
    "meshlib.buckets",
    "meshlib.config",
    "meshlib.proxies",
    "meshlib.client.events",
)
CORES = tuple(
    f"meshlib.client.{name}"
    for name in (
        "core",
        "peers",
        "epochs",
        "keyring",
        "knocks",
        "inbox",
        "outbox",
        "held",
        "counters",
        "sightings",
    )
)
CORES += tuple(f"meshlib.files.{name}" for name in ("__init__", "incoming", "outgoing", "pieces", "records"))
WEBSOCKET = ("meshlib.client.websocket",)
STORES = ("meshlib.store", "meshlib.files.folder", "meshlib.files.journal")
SHELLS = tuple(
    f"meshlib.client.{name}"
    for name in (
        "bell",
        "mesh",
        "logs",
        "handles",
        "names",
        "routes",
        "requests",
        "verbs",
        "transport",
        "registry",
        "registration",
    )
)
RESPONDER_CORES = tuple(f"meshlib.responder.{name}" for name in ("core", "answers", "jobs", "policy"))
RUNTIMES = ("meshlib.responder.runtimes",)
RESPONDER_STORES = ("meshlib.responder.journal",)
RESPONDER_SHELLS = ("meshlib.responder.service", "meshlib.responder.outcomes", "meshlib.responder.__init__")
SHELLS += tuple(
    f"meshlib.files.{name}"
    for name in ("answers", "arrivals", "ledger", "receipts", "receiver", "sender", "service", "source", "staging")
)
DAEMON_VALUES = tuple(f"meshlib.daemon.{name}" for name in ("__init__", "address", "values", "protocol", "blocking"))
DAEMON_SHELLS = tuple(f"meshlib.daemon.{name}" for name in ("stream", "client", "server"))
TOOLS = tuple(
    f"meshlib.tools.{name}"
    for name in (
        "__init__",
        "results",
        "desk",
        "arguments",
        "reading",
        "definitions",
        "toolbox",
        "blocking",
        "hermes",
        "hermes_folder",
    )
)
TOOL_DOORS = tuple(
    f"meshlib.tools.{name}"
    for name in ("waiting", "calling", "link", "mcp", "openai_agents", "pydantic_ai", "langchain", "agent_framework")
)
DOORS = ("meshlib.client.blocking", "meshlib.cli", "meshlib.__main__", "meshlib.testing")

TABLE = {
    "identity": Row(
        IDENTITY,
        foreign=("cryptography", "nacl", "msgspec"),
        never=(*IO, *CLOCK_AND_CHANCE, "logging", "json"),
    ),
    "session": Row(SESSION, IDENTITY, ("msgpack", "msgspec"), never=(*IO, *CLOCK_AND_CHANCE, "logging", "json")),
    "wire": Row(WIRE, IDENTITY, ("msgspec",), never=(*IO, "random", "secrets", "os", "logging")),
    "logs": Row(LOGS, WIRE, never=(*IO, *CLOCK_AND_CHANCE)),
    "numbers": Row(NUMBERS, never=(*IO, "random", "secrets", "logging")),
    "serving": Row(SERVING, foreign=("cryptography",), never=("asyncio", "threading", "subprocess", "sqlite3")),
    "core values": Row(
        tuple(sorted({*CORE_VALUES} - {*STATS})),
        (*IDENTITY, *WIRE, *STATS),
        ("msgspec",),
        never=(*IO, *CLOCK_AND_CHANCE, "logging"),
    ),
    # Plugins load it inside foreign interpreters, where no package of ours is.
    "stats": Row(STATS, never=(*IO, *CLOCK_AND_CHANCE, "logging")),
    "cores": Row(
        CORES,
        # The records a store keeps are the core's own values; the store's drivers are not for it.
        (*IDENTITY, *SESSION, *WIRE, *CORE_VALUES, "meshlib.store.protocol"),
        ("msgspec",),
        never=(*IO, *CLOCK_AND_CHANCE, "logging"),
    ),
    "stores": Row(
        STORES,
        (
            *IDENTITY,
            *SESSION,
            *WIRE,
            *CORE_VALUES,
            "meshlib.client.peers",
            "meshlib.client.keyring",
            "meshlib.files.records",
        ),
        ("msgspec",),
        never=("asyncio", "threading", "subprocess", "random", "secrets"),
    ),
    "websocket": Row(WEBSOCKET, IDENTITY, ("websockets",), never=(*IO, *CLOCK_AND_CHANCE, "logging")),
    "shells": Row(
        SHELLS,
        (*IDENTITY, *SESSION, *WIRE, *LOGS, *CORE_VALUES, *CORES, *STORES, *WEBSOCKET),
        ("anyio", "httpx", "websockets", "python_socks", "msgspec"),
        never=("asyncio", "sqlite3", "subprocess"),
    ),
    # What a plugin needs inside a foreign interpreter: nothing that has a version.
    "daemon values": Row(
        DAEMON_VALUES, ("meshlib.errors", *STATS), never=("asyncio", "subprocess", "sqlite3", "random")
    ),
    "daemon": Row(
        DAEMON_SHELLS,
        (*IDENTITY, *WIRE, *LOGS, *CORE_VALUES, *STORES, *SHELLS, *DAEMON_VALUES),
        ("anyio",),
        never=("asyncio", "sqlite3", "subprocess"),
    ),
    # They load inside of foreign runtimes: what they import besides errors is for type checkers, see below.
    "tools": Row(
        TOOLS,
        (
            "meshlib.errors",
            "meshlib.places",
            "meshlib.identity",
            "meshlib.client.verbs",
            "meshlib.client.handles",
            *DAEMON_VALUES,
        ),
        never=("asyncio", "subprocess", "sqlite3", "random", "secrets", "socket"),
    ),
    "doors of tools": Row(
        TOOL_DOORS,
        (*IDENTITY, *WIRE, *CORE_VALUES, *STORES, *SHELLS, *DAEMON_VALUES, *DAEMON_SHELLS, *TOOLS),
        ("anyio", "mcp", "agents", "pydantic_ai", "langchain_core", "agent_framework"),
    ),
    "doors": Row(
        (*DOORS, "meshlib.__init__"),
        (
            *IDENTITY,
            *SESSION,
            *WIRE,
            *LOGS,
            *CORE_VALUES,
            *CORES,
            *STORES,
            *SHELLS,
            *RESPONDER_CORES,
            *RESPONDER_STORES,
            *RUNTIMES,
            *RESPONDER_SHELLS,
            *DAEMON_VALUES,
            *DAEMON_SHELLS,
            *TOOLS,
            *TOOL_DOORS,
        ),
        ("anyio", "httpx", "msgspec"),
    ),
    "responder cores": Row(
        RESPONDER_CORES,
        (*IDENTITY, *WIRE, *CORE_VALUES, "meshlib.responder.runtimes.protocol"),
        ("msgspec",),
        never=(*IO, *CLOCK_AND_CHANCE, "logging"),
    ),
    "responder stores": Row(
        RESPONDER_STORES, (*IDENTITY, *SESSION, *WIRE, *STORES, *RESPONDER_CORES), ("msgspec",), never=("asyncio",)
    ),
    "runtimes": Row(
        RUNTIMES,
        (*IDENTITY, *WIRE, *CORE_VALUES, *LOGS, "meshlib.tools.hermes_folder"),
        ("anyio", "httpx", "msgspec"),
        never=("asyncio", "sqlite3", "threading"),
    ),
    "responder shells": Row(
        RESPONDER_SHELLS,
        (
            *IDENTITY,
            *WIRE,
            *LOGS,
            *CORE_VALUES,
            *STORES,
            *SHELLS,
            *RESPONDER_CORES,
            *RESPONDER_STORES,
            *RUNTIMES,
        ),
        ("anyio",),
        never=("asyncio", "sqlite3", "subprocess"),
    ),
    "relay cores": Row(
        (
            "mesh_relay.__init__",
            "mesh_relay.core",
            "mesh_relay.acked",
            "mesh_relay.addresses",
            "mesh_relay.links",
            "mesh_relay.mailboxes",
            "mesh_relay.counters",
            "mesh_relay.connection",
            "mesh_relay.admission",
            "mesh_relay.envelope",
            "mesh_relay.records",
            "mesh_relay.config",
            "mesh_relay.metrics",
            "mesh_relay.logs",
            "mesh_relay.tls",
        ),
        (*IDENTITY, *WIRE, *LENT),
        ("msgspec", "websockets"),
        never=(*IO, *CLOCK_AND_CHANCE),
    ),
    "relay stores": Row(
        ("mesh_relay.inbox",),
        (*IDENTITY, *WIRE, "mesh_relay.records"),
        never=("asyncio", "socket", "subprocess", "random"),
    ),
    "relay shells": Row(
        ("mesh_relay.server", "mesh_relay.readiness"),
        (*IDENTITY, *WIRE, *LENT, "mesh_relay"),
        ("trio", "websockets"),
        never=("asyncio", "sqlite3", "subprocess"),
    ),
    "relay door": Row(("mesh_relay.__main__",), (*IDENTITY, *WIRE, *LENT, "mesh_relay"), ("trio",)),
    "registry cores": Row(
        (
            "mesh_registry.__init__",
            "mesh_registry.core",
            "mesh_registry.bodies",
            "mesh_registry.metrics",
            "mesh_registry.openapi",
            "mesh_registry.proofs",
            "mesh_registry.refusal",
            "mesh_registry.render",
            "mesh_registry.shown",
            "mesh_registry.verbs",
        ),
        (*IDENTITY, *WIRE, *LENT, "mesh_registry.store.vitals"),
        ("msgspec",),
        never=(*IO, *CLOCK_AND_CHANCE),
    ),
    "registry stores": Row(
        ("mesh_registry.store",),
        (*IDENTITY, *WIRE, "meshlib.prometheus", "mesh_registry.verbs", "mesh_registry.refusal"),
        never=("socket", "subprocess"),
    ),
    "registry shells": Row(
        (
            "mesh_registry.api",
            "mesh_registry.handler",
            "mesh_registry.answers",
            "mesh_registry.pages",
            "mesh_registry.parts",
            "mesh_registry.oidc",
            "mesh_registry.config",
            "mesh_registry.logs",
        ),
        (*IDENTITY, *WIRE, *LENT, "mesh_registry"),
        ("starlette", "httpx", "jwt"),
        never=("sqlite3", "subprocess", "socket"),
    ),
    "registry door": Row(
        ("mesh_registry.__main__", "mesh_registry.http", "mesh_registry.tls"),
        (*IDENTITY, *WIRE, *LENT, "mesh_registry"),
        ("uvicorn", "uvloop", "httpx"),
    ),
}


@dataclass(frozen=True)
class Import:
    """One imported module, and where."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: {self.imported}"


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            yield ".".join([package, *path.relative_to(folder).with_suffix("").parts]), path


def imports_of(name: str, path: Path) -> Iterator[Import]:
    """All imports, also inside functions and under TYPE_CHECKING: a layer is what a module knows."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively: absolute imports show the layer"
            base = node.module or ""
            for alias in node.names:
                below = f"{base}.{alias.name}"
                yield Import(name, below if below in NAMES or is_module(base, alias.name) else base, node.lineno)


def is_module(base: str, name: str) -> bool:
    top, *rest = base.split(".")
    if top not in PACKAGES:
        return False
    folder = PACKAGES[top].joinpath(*rest)
    return (folder / f"{name}.py").exists() or (folder / name / "__init__.py").exists()


NAMES = {name for name, _ in modules()}


def within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


def row_of(module: str) -> Row:
    rows = [row for row in TABLE.values() if within(module, row.modules)]
    assert len(rows) == 1, f"{module} stands in {len(rows)} rows of the table: every module has one place"
    return rows[0]


def allowed(one: Import, row: Row) -> bool:
    top = one.imported.split(".")[0]
    if top in PACKAGES:
        return within(one.imported, (*row.modules, *row.ours))
    if top in sys.stdlib_module_names:
        return not within(one.imported, row.never)
    return within(one.imported, row.foreign)


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_point_up_the_table(name: str, path: Path) -> None:
    row = row_of(name)
    wrong = [str(one) for one in imports_of(name, path) if not allowed(one, row)]
    assert not wrong, "\n".join(wrong)


def test_every_row_describes_something() -> None:
    names = [name for name, _ in modules()]
    unused = [
        prefix for row in TABLE.values() for prefix in row.modules if not any(within(one, (prefix,)) for one in names)
    ]
    assert not unused


def test_servers_borrow_identities_and_the_wire_only() -> None:
    borrowed = {
        one.imported
        for name, path in modules()
        if name.startswith(("mesh_relay", "mesh_registry"))
        for one in imports_of(name, path)
        if one.imported.startswith("meshlib")
    }
    assert borrowed
    assert all(within(one, (*IDENTITY, *WIRE, *LENT)) for one in borrowed)


def test_meshlib_imports_no_server() -> None:
    assert not [
        str(one)
        for name, path in modules()
        if name.startswith("meshlib")
        for one in imports_of(name, path)
        if one.imported.startswith(("mesh_relay", "mesh_registry"))
    ]


@pytest.mark.parametrize("package", ["mesh_relay", "mesh_registry"])
def test_servers_do_not_know_each_other(package: str) -> None:
    other = {"mesh_relay": "mesh_registry", "mesh_registry": "mesh_relay"}[package]
    assert not [
        str(one)
        for name, path in modules()
        if name.startswith(package)
        for one in imports_of(name, path)
        if one.imported.startswith(other)
    ]


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_only_main_modules_read_the_environment(name: str, path: Path) -> None:
    readers = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"))
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and {"environ", "getenv"} & {a.name for a in node.names}
        )
    ]
    # Hermes enters where the plugin's entry point says, as a shell enters at a __main__.
    assert not readers or name.endswith(".__main__") or name == "meshlib.tools.hermes", f"lines {readers}"


def loaded_by(statement: str) -> set[str]:
    """Top-level names of the modules a fresh interpreter has after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "module", ["meshlib", "meshlib.identity", "meshlib.session", "meshlib.wire.codec", "meshlib.wire.registry"]
)
def test_values_and_crypto_load_no_network_stack(module: str) -> None:
    network = {"httpx", "httpcore", "websockets", "anyio", "trio", "asyncio", "python_socks"}
    assert not network & loaded_by(f"import {module}")


def test_tools_load_the_standard_library_only() -> None:
    loaded = loaded_by("import meshlib.tools.hermes") - loaded_by("pass") - set(sys.stdlib_module_names)
    assert loaded == {"meshlib"}


def test_client_core_loads_no_driver() -> None:
    assert not {"anyio", "trio", "httpx", "asyncio", "python_socks"} & loaded_by("import meshlib.client.core")


@pytest.mark.parametrize("statement", ["from meshlib import BlockingDaemonClient", "import meshlib.daemon.blocking"])
def test_plugins_of_a_daemon_load_the_standard_library_only(statement: str) -> None:
    foreign = loaded_by(statement) - loaded_by("pass") - set(sys.stdlib_module_names)
    assert foreign == {"meshlib"}
    assert "asyncio" not in loaded_by(statement)


def test_client_loads_only_the_event_loop_it_runs_on() -> None:
    assert "trio" not in loaded_by("from meshlib import MeshClient")


def test_importing_the_package_does_nothing_to_the_process() -> None:
    code = """
import logging, os, signal, threading
def facts():
    handlers = (logging.root.handlers[:], signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    return dict(os.environ), handlers, threading.active_count()
before = facts()
import meshlib
for name in meshlib.__all__:
    getattr(meshlib, name)
assert facts() == before, (before, facts())
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
