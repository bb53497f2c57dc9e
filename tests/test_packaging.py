"""What people install: built, looked into, installed into a fresh environment, and run there."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.commands import ROOT, environment

pytestmark = pytest.mark.slow

SHIPPED = {"meshlib", "mesh_relay", "mesh_registry"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one wheel and one source distribution."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT],
        check=True,
        capture_output=True,
        timeout=300,
    )
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a fresh environment with the wheel and all extras in it."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=True)
    bin_folder = folder / ("Scripts" if os.name == "nt" else "bin")
    subprocess.run(
        [bin_folder / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{wheel}[all]"],
        check=True,
        timeout=600,
    )
    return bin_folder


def run(command: list[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment(), timeout=120, check=False)


def test_wheel_ships_three_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == SHIPPED


def test_wheel_ships_every_module_schema_and_type_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        "meshlib": ROOT / "meshlib",
        "mesh_relay": ROOT / "relay/mesh_relay",
        "mesh_registry": ROOT / "registry/mesh_registry",
    }
    expected = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in sources.items()
        for path in folder.rglob("*")
        if path.suffix in (".py", ".sql") or path.name == "py.typed"
    }
    assert expected <= names
    assert {f"{package}/py.typed" for package in SHIPPED} <= names
    assert {name.split("/")[0] for name in names if name.endswith(".sql")} == SHIPPED


def test_source_distribution_holds_what_the_wheel_is_made_of(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        tops = {Path(name).parts[1] for name in archive.getnames() if len(Path(name).parts) > 1}
    assert {
        "meshlib",
        "relay",
        "registry",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "SECURITY.md",
        "pyproject.toml",
    } <= tops
    assert not {".venv", ".git", "tests", ".cache"} & tops


@pytest.mark.parametrize("command", ["mesh", "mesh-relay", "mesh-registry"])
def test_installed_commands_run(installed: Path, tmp_path: Path, command: str) -> None:
    shown = run([installed / command, "--help"], tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert f"usage: {command}" in shown.stdout


def test_installed_version_is_the_one_the_command_tells(installed: Path, wheel: Path, tmp_path: Path) -> None:
    assert run([installed / "mesh", "--version"], tmp_path).stdout.split() == ["mesh", wheel.name.split("-")[1]]


def test_installed_mesh_makes_an_identity(installed: Path, tmp_path: Path) -> None:
    made = run([installed / "mesh", "identity", "create", "--store", tmp_path / "store", "--json"], tmp_path)
    assert made.returncode == 0, made.stderr
    assert '"did":"did:mesh:' in made.stdout


def test_installed_packages_do_not_bring_our_tests(installed: Path, tmp_path: Path) -> None:
    assert importable(installed / "python", tmp_path) == SHIPPED


def test_editable_install_does_not_either(tmp_path: Path) -> None:
    assert importable(Path(sys.executable), tmp_path) == SHIPPED


def importable(python: Path, cwd: Path) -> set[str]:
    """Which of our folder names an interpreter can import, run somewhere else."""
    names = [*sorted(SHIPPED), "tests", "relay", "registry", "vectors", "interop", "demo", "examples"]
    code = f"from importlib.util import find_spec\nprint(*[one for one in {names} if find_spec(one)])"
    done = run([python, "-c", code], cwd)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_without_extras_the_client_works_and_the_servers_say_what_they_need(wheel: Path, tmp_path: Path) -> None:
    """``pip install agent-meshlib`` alone: looked at from the metadata, since every install costs half a minute."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [one for one in archive.namelist() if one.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
    required = [line for line in lines if line.startswith("Requires-Dist:")]
    plain = {line.split()[1].split(">")[0].split("[")[0] for line in required if "extra ==" not in line}
    assert {"anyio", "cryptography", "httpx", "msgpack", "msgspec", "pynacl", "websockets"} <= plain
    assert not {"trio", "starlette", "uvicorn", "pytest", "mypy"} & plain
    assert "Requires-Python: >=3.11" in lines
