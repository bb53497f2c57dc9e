"""The files in deploy/ fit the servers: what they name exists, and what they start starts."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Metric

from meshlib.cli.options import VARIABLES
from tests.commands import MESH, ROOT, environment, running
from tests.watched import Server, serving

DEPLOY = ROOT / "deploy"
ROLES = ("relay", "registry")
PORTS = {"relay": 8083, "registry": 8082}


@cache
def document(name: str) -> dict[str, Any]:
    text = (DEPLOY / name).read_text(encoding="utf-8")
    decoded: dict[str, Any] = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    return decoded


# --- what is shown and alerted on -----------------------------------------------------------------------------------


def rules() -> list[dict[str, Any]]:
    return [rule for group in document("alerts.yml")["groups"] for rule in group["rules"]]


def queries() -> list[tuple[str, str]]:
    """Every expression, and where it stands."""
    panels = document("grafana-dashboard.json")["panels"]
    shown = [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", ())]
    return shown + [(rule["alert"], rule["expr"]) for rule in rules()]


METRIC = re.compile(r"\b((?:mesh_relay|mesh_registry|process)_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
OF_PROMETHEUS = {"job", "instance"}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Server]]:
    folder = tmp_path_factory.mktemp("servers")
    with (
        serving("relay", "--store", folder / "relay.db") as relay,
        serving("registry", "--store", folder / "registry.db") as registry,
    ):
        registry.get("/v1/agents/did:mesh:nobody")
        yield {"relay": relay, "registry": registry}


@pytest.fixture(scope="module")
def families(servers: Mapping[str, Server]) -> Mapping[str, Metric]:
    return {**servers["relay"].metrics(), **servers["registry"].metrics()}


@pytest.mark.slow
@pytest.mark.parametrize(("where", "expression"), queries(), ids=lambda text: text[:40])
def test_every_metric_and_label_exists_on_a_real_page(
    where: str, expression: str, families: Mapping[str, Metric]
) -> None:
    named = METRIC.findall(expression)
    assert named or expression.startswith("up{")
    for name, selector in named:
        family = families.get(name) or families[re.sub("_(bucket|sum|count)$", "", name)]
        assert (family.type == "histogram") == (name != family.name and not name.endswith("_total"))
        if family.type != "gauge":
            assert re.search(rf"(rate|increase)\({name}", expression), "a counter's value says nothing"
        for label, operator, wanted in MATCHER.findall(selector):
            if label in OF_PROMETHEUS:
                continue
            values = {sample.labels[label] for sample in family.samples}
            if operator.startswith("=") and label != "status":
                assert any(re.fullmatch(wanted, one) for one in values), (where, label, wanted)
    for label in re.findall(r"by \(([^)]*)\)", expression):
        known = {name for family in families.values() for sample in family.samples for name in sample.labels}
        assert set(label.split(", ")) <= known | OF_PROMETHEUS


def test_alerts_say_what_is_wrong_and_how_much_it_matters() -> None:
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)


def test_alerts_name_the_jobs_prometheus_has() -> None:
    prometheus = document("prometheus.yml")
    jobs = {job["job_name"] for job in prometheus["scrape_configs"]}
    assert {job for _, text in queries() for job in re.findall(r'job="([^"]+)"', text)} == jobs
    assert all((DEPLOY / name).exists() for name in prometheus["rule_files"])


@pytest.mark.slow
def test_prometheus_own_checker_agrees_where_there_is_one(servers: Mapping[str, Server]) -> None:
    promtool = shutil.which("promtool") or "true"
    for arguments in (["check", "rules", "alerts.yml"], ["check", "config", "prometheus.yml"]):
        done = subprocess.run([promtool, *arguments], cwd=DEPLOY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    for server in servers.values():
        page = server.get("/metrics").text
        done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_panels_have_their_place_and_do_not_overlap() -> None:
    panels = document("grafana-dashboard.json")["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


# --- what is started ------------------------------------------------------------------------------------------------


def unit(name: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string((DEPLOY / name).read_text(encoding="utf-8"))
    return parsed


def settings(name: str) -> dict[str, str]:
    """The environment a unit gives."""
    return dict(one.split("=", 1) for one in shlex.split(unit(name)["Service"]["Environment"]))


def containerfile(role: str) -> list[tuple[str, str]]:
    """Instructions and their arguments."""
    lines = (DEPLOY / f"Containerfile.{role}").read_text(encoding="utf-8").splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line and not line.startswith("#")]


def last(role: str, instruction: str) -> str:
    return [argument for name, argument in containerfile(role) if name == instruction][-1]


def started(role: str, arguments: list[str], store: Path, **variables: str) -> None:
    """Start a server with these arguments, on a free port and another store, and see it listen."""
    argv = [sys.executable, "-m", f"mesh_{role}", *arguments, "--port", "0", "--store", store]
    with running(argv, **variables) as process:
        assert process.said()["event"] == "listening"
        process.stop()
        assert process.ended() == 0


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_a_unit_starts_its_server(role: str, tmp_path: Path) -> None:
    program, *arguments = shlex.split(unit(f"mesh-{role}.service")["Service"]["ExecStart"])
    assert Path(program).name == f"mesh-{role}"
    assert set(settings(f"mesh-{role}.service")) <= known_variables(role)
    started(role, arguments, tmp_path / "store.db", **settings(f"mesh-{role}.service"))


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_a_container_starts_its_server(role: str, tmp_path: Path) -> None:
    assert json.loads(last(role, "ENTRYPOINT")) == [f"/opt/mesh/bin/mesh-{role}"]
    variables = document("compose.yml")["services"][role]["environment"]
    assert set(variables) <= known_variables(role)
    variables = {name: value for name, value in variables.items() if not name.endswith("_DRAIN_SECONDS")}
    started(role, json.loads(last(role, "CMD")), tmp_path / "store.db", **variables)


def known_variables(role: str) -> set[str]:
    shown = subprocess.run(
        [sys.executable, "-m", f"mesh_{role}", "serve", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    ).stdout
    options = set(re.findall(r"--([a-z][a-z-]+)", shown))
    return {f"MESH_{role.upper()}_{option.upper().replace('-', '_')}" for option in options}


def test_the_daemons_unit_starts_a_daemon() -> None:
    service = unit("mesh-daemon@.service")["Service"]
    program, command, *options = shlex.split(service["ExecStart"])
    assert (Path(program).name, command) == ("mesh", "daemon")
    shown = subprocess.run([*MESH, command, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(option in shown for option in options if option.startswith("--"))
    assert set(settings("mesh-daemon@.service")) <= {name for names in VARIABLES.values() for name in names}


@pytest.mark.parametrize("name", ["mesh-relay.service", "mesh-registry.service"])
def test_systemd_takes_the_units_where_there_is_one(name: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    text = (DEPLOY / name).read_text(encoding="utf-8").replace("/opt/mesh/bin", str(Path(sys.executable).parent))
    (tmp_path / name).write_text(text)
    checker = [analyze, "verify", "--man=no"] if analyze else ["true"]
    done = subprocess.run([*checker, tmp_path / name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_what_the_containers_publish_is_what_the_servers_listen_on() -> None:
    composed = document("compose.yml")
    for role, port in PORTS.items():
        service = composed["services"][role]
        assert last(role, "EXPOSE") == str(port)
        assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()
        (volume,) = service["volumes"]
        name, _, folder = volume.partition(":")
        assert name in composed["volumes"]
        assert last(role, "VOLUME") == folder
        assert Path(json.loads(last(role, "CMD"))[-3]).parent == Path(folder)
    targets = {
        target
        for job in document("prometheus.yml")["scrape_configs"]
        for one in job["static_configs"]
        for target in one["targets"]
    }
    assert targets == {f"{role}:{port}" for role, port in PORTS.items()}
    mounted = [volume.partition(":")[0] for volume in composed["services"]["prometheus"]["volumes"]]
    assert all((DEPLOY / name).exists() for name in mounted if name.startswith("."))


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_the_health_check_asks_for_a_page_there_is(role: str, servers: Mapping[str, Server]) -> None:
    url = re.search(rf"http://127\.0\.0\.1:{PORTS[role]}(/[a-z/]+)", last(role, "HEALTHCHECK"))
    assert url is not None
    program = json.loads(last(role, "HEALTHCHECK").removeprefix("CMD "))
    code = program[-1].replace(f"http://127.0.0.1:{PORTS[role]}", servers[role].url)
    subprocess.run([sys.executable, *program[1:-1], code], check=True, env=environment(), timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_what_a_containerfile_copies_is_enough_to_build(role: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, argument in containerfile(role):
        if name != "COPY" or argument.startswith("--"):
            continue
        *names, target = argument.split()
        for one in names:
            if (ROOT / one).is_dir():
                shutil.copytree(ROOT / one, source / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / one, source / target)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "out", source]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    assert list((tmp_path / "out").glob("*.whl"))
