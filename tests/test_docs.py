"""The documents tell the truth: their code runs, their links lead somewhere, and what they name exists."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from interop import stacks
from meshlib.cli.exits import Exit
from meshlib.cli.options import VARIABLES
from meshlib.client.core import TERMINAL_CODES
from tests.commands import ROOT, Servers, environment, running

README = (ROOT / "README.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


MADE = re.compile(r"(^|/)(\.(?!ci|gitignore|npmrc)[^/]+|node_modules|__pycache__|build|dist)(/|$)")
"""Folders and files that tools make."""


def sources(*patterns: str) -> list[Path]:
    """Files of the repository, as far as people wrote them."""
    found = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    return sorted(path for path in found if not MADE.search(relative(path)))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


DOCUMENTS = sources("**/*.md")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def anchor(heading: str) -> str:
    """The anchor a renderer makes of a heading."""
    kept = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower())
    return kept.strip().replace(" ", "-")


class TestLinks:
    @pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
    def test_lead_somewhere(self, document: Path) -> None:
        text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        broken = []
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith(("https://", "mailto:")):
                continue
            name, _, fragment = target.partition("#")
            file = (document.parent / name) if name else document
            headings = (
                re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE) if file.is_file() else []
            )
            if not file.exists() or (fragment and fragment not in map(anchor, headings)):
                broken.append(target)
        assert not broken

    def test_readme_leads_to_every_document(self) -> None:
        linked = set(re.findall(r"\]\(([^)#\s]+)", README))
        assert {relative(path) for path in sources("docs/*.md", "*.md")} <= {
            "README.md",
            *linked,
        }


class TestCommandsAndNames:
    @pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
    def test_make_targets_exist(self, document: Path) -> None:
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        named = re.findall(r"(?:^|`)make ([a-z]+)\b(?=[`\s])", document.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(named) <= targets

    def test_ci_runs_what_the_readme_says(self) -> None:
        last = (ROOT / ".ci/run").read_text(encoding="utf-8").strip().splitlines()[-1]
        assert last == "make test"
        assert "\nmake test " in README
        assert "\nmake demo " in README

    def test_every_exit_status_is_in_the_table(self) -> None:
        section = OPERATIONS.partition("## Exit status")[2].partition("## ")[0]
        assert {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)} == set(Exit)

    def test_every_code_that_ends_a_client_is_in_the_table(self) -> None:
        section = OPERATIONS.partition("## Close codes")[2].partition("## ")[0]
        giving_up = {int(code) for code in re.findall(r"^\| (\d+) \|.*gives up", section, re.MULTILINE)}
        assert giving_up == set(TERMINAL_CODES)

    def test_every_variable_of_the_client_is_in_the_table(self) -> None:
        assert all(f"`{name}`" in OPERATIONS for names in VARIABLES.values() for name in names)

    @pytest.mark.parametrize("role", ["relay", "registry"])
    def test_options_of_the_servers_are_all_in_the_table_and_nothing_else(self, role: str) -> None:
        argv = [sys.executable, "-m", f"mesh_{role}", "serve", "--help"]
        shown = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60, env=environment()).stdout
        known = set(re.findall(r"--[a-z][a-z-]+", shown)) - {"--help", "--no-allow-legacy"}
        section = OPERATIONS.partition(f"\n## {role.capitalize()}\n")[2].partition("\n## ")[0]
        assert set(re.findall(r"`(--[a-z-]+)`", section)) == known

    def test_limits_named_are_limits_of_the_relay(self) -> None:
        source = (ROOT / "relay/mesh_relay/config.py").read_text(encoding="utf-8")
        for name in re.findall(r"`MESH_RELAY_([A-Z_]+)`", OPERATIONS):
            if name not in ("URL", ""):
                assert f"    {name.lower()}: " in source

    def test_every_dependency_says_why(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = [one for extra in ("relay", "registry") for one in project["optional-dependencies"][extra]]
        names = {re.split(r"[\[>=<; ]", one)[0] for one in [*project["dependencies"], *extras]}
        section = ARCHITECTURE.partition("## Dependencies")[2].partition("\n## ")[0]
        rows = {re.split(r"\[", name)[0] for name in re.findall(r"`([^`]+)`", section)}
        assert names <= rows


class TestWords:
    FORBIDDEN = re.compile(
        r"/root/|/work/|/farm/|/tmp/w|\.\./shared|pypi\.org|pythonhosted|registry\.npmjs|npmjs\.(com|org)"
    )
    UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b")

    @pytest.mark.parametrize("pattern", [FORBIDDEN, UNFINISHED], ids=["machines and hosts", "unfinished"])
    def test_do_not_stand_in_the_repository(self, pattern: re.Pattern[str]) -> None:
        found = []
        for path in sources("**/*", ".ci/*"):
            if path == Path(__file__) or path.suffix in (".db", ".bin", ".png"):
                continue
            text = path.read_bytes().decode("utf-8", "replace")
            found += [f"{relative(path)}: {match[0]}" for match in pattern.finditer(text)]
        assert not found

    def test_readme_fits_on_a_screen(self) -> None:
        assert len(README.splitlines()) <= 100


@pytest.mark.slow
class TestReadmeRuns:
    @staticmethod
    def pointed_at(servers: Servers, code: str) -> str:
        """The code with the addresses of our servers where it relies on the defaults."""
        code = code.replace("ws://127.0.0.1:8083", servers.relay).replace("http://127.0.0.1:8082", servers.registry)
        urls = f"relay_url={servers.relay!r}, registry_url={servers.registry!r}"
        return code.replace("ClientConfig(name", f"ClientConfig({urls}, name")

    def test_python_agents_talk(self, servers: Servers, tmp_path: Path) -> None:
        bob, alice, carol = (self.pointed_at(servers, block) for block in blocks(README, "python"))
        listening = "        async for message in bob.inbox():\n"
        assert listening in bob
        (tmp_path / "bob.py").write_text(bob.replace(listening, f"        print('ready')\n{listening}"))
        with running(
            [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); exec(open('bob.py').read())"]
        ) as process:
            assert process.line() == "ready"
            for code, heard in ((alice, "hello"), (carol, "any bytes, text or JSON value")):
                done = subprocess.run(
                    [sys.executable, "-W", "error", "-c", code],
                    capture_output=True,
                    text=True,
                    cwd=tmp_path,
                    env=environment(),
                    timeout=60,
                    check=False,
                )
                assert done.returncode == 0, done.stderr
                assert done.stdout == "{'answer': 42}\n"
                assert process.line().endswith(f" {heard}")

    @pytest.mark.node
    def test_typescript_agent_talks(self, servers: Servers, tmp_path: Path) -> None:
        bob = self.pointed_at(servers, blocks(README, "python")[0].replace('"bob"', '"bob-of-ts"'))
        (tmp_path / "bob.py").write_text(bob.replace("        async for", "        print('ready')\n        async for"))
        (code,) = blocks(README, "js")
        code = self.pointed_at(servers, code).replace('discover("bob")', 'discover("bob-of-ts")')
        code = code.replace('"./agt-adapter', f'"{(ROOT / "interop").as_uri()}/agt-adapter')
        code = code.replace('"ws"', f'"{(ROOT / "interop/node_modules/ws/wrapper.mjs").as_uri()}"')
        with running(
            [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); exec(open('bob.py').read())"]
        ) as process:
            assert process.line() == "ready"
            with running(["node", "--input-type=module", "-e", code]) as typescript:
                assert process.line().endswith(" hello from TypeScript")
                assert typescript.line().endswith(" { answer: 42 }")


@contextlib.asynccontextmanager
async def upstreams_registry() -> AsyncIterator[httpx.AsyncClient]:
    """A client of upstream's registry that never says who it is."""
    async with (
        stacks.running(stacks.Servers.UPSTREAM) as stack,
        httpx.AsyncClient(base_url=f"http://{stack.registry}", trust_env=False) as client,
    ):
        yield client


@pytest.mark.slow
class TestComparison:
    """What the README says about upstream's servers and tests/interop does not show."""

    def test_anyone_replaces_prekeys_at_upstreams_registry_and_a_restart_forgets_them(self) -> None:
        key, other = "A" * 43, "B" * 42 + "A"

        def prekeys(number: int, public: str) -> dict[str, object]:
            signed = {"key_id": number, "public_key": public, "signature": "A" * 86}
            one_time = [{"key_id": number, "public_key": public}]
            return {"identity_key": public, "signed_pre_key": signed, "one_time_pre_keys": one_time}

        async def run() -> None:
            async with upstreams_registry() as anyone:
                body = {"did": "did:agentmesh:victim", "public_key": key, "capabilities": []}
                assert (await anyone.post("/v1/agents", json=body)).status_code == 201
                path = "/v1/agents/did%3Aagentmesh%3Avictim/prekeys"
                for number, public in ((1, key), (2, other)):
                    put = await anyone.put(path, json=prekeys(number, public))
                    assert put.status_code == 200, put.text
                bundle = (await anyone.get(path)).json()
                assert bundle["signed_pre_key"]["key_id"] == 2
                assert bundle["one_time_pre_key"]["key_id"] == 2
                assert (await anyone.get(path)).json()["one_time_pre_key"] is None
            async with upstreams_registry() as anyone:
                assert (await anyone.get(path)).status_code == 404

        asyncio.run(run())

    def test_metrics_worth_an_alert_exist(self, servers: Servers) -> None:
        relay = httpx.get(f"{servers.relay.replace('ws', 'http', 1)}/metrics", trust_env=False).text
        registry = httpx.get(f"{servers.registry}/metrics", trust_env=False).text
        named = re.findall(r"`(mesh_(?:relay|registry)_\w+)", OPERATIONS)
        assert named
        assert not [name for name in named if f"# TYPE {name} " not in relay + registry]
