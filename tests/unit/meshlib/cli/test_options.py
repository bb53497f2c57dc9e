"""From arguments and environment to settings: precedence, folders, and what is refused."""

from argparse import Namespace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.cli.exits import Exit, exit_for
from meshlib.cli.options import settings_from
from meshlib.errors import (
    AgentNotFound,
    AmbiguousName,
    IdentityInUse,
    InvalidValue,
    KnockRefused,
    MeshError,
    NotAuthentic,
    QueueFull,
    RegistryRefused,
    RelayRefused,
    StoreError,
    TransportError,
)
from meshlib.places import data_home, folder_name

HOME = {"HOME": "/home/somebody"}


def test_command_line_wins_over_environment_and_environment_over_default() -> None:
    environment = {**HOME, "MESH_RELAY_URL": "ws://environment", "MESH_NAME": "from-environment"}
    settings = settings_from(Namespace(relay="ws://given"), environment)
    assert settings.relay_url == "ws://given"
    assert settings.name == "from-environment"
    assert settings.registry_url == "http://127.0.0.1:8082"


def test_our_variables_win_over_those_of_other_runtimes() -> None:
    environment = {**HOME, "MESH_RELAY_URL": "ws://ours", "AGT_RELAY_URL": "ws://theirs", "SANDBOX_NAME": "theirs"}
    settings = settings_from(Namespace(), environment)
    assert settings.relay_url == "ws://ours"
    assert settings.name == "theirs"


def test_empty_variable_is_no_variable() -> None:
    assert settings_from(Namespace(), {**HOME, "MESH_RELAY_URL": ""}).relay_url == "ws://127.0.0.1:8083"


def test_token_reaches_the_client_and_no_repr() -> None:
    settings = settings_from(Namespace(), {**HOME, "AGT_OAUTH_TOKEN": "t0ken"})
    assert settings.client().token == "t0ken"
    assert "t0ken" not in repr(settings)


@pytest.mark.parametrize(
    ("environment", "home"),
    [
        ({"XDG_DATA_HOME": "/data", **HOME}, "/data"),
        ({"XDG_DATA_HOME": "relative", **HOME}, "/home/somebody/.local/share"),
        (HOME, "/home/somebody/.local/share"),
        ({"USERPROFILE": "/users/somebody"}, "/users/somebody/.local/share"),
    ],
)
def test_data_home(environment: dict[str, str], home: str) -> None:
    assert data_home(environment) == Path(home)


def test_without_a_home_a_store_must_be_named() -> None:
    with pytest.raises(InvalidValue, match="--store"):
        settings_from(Namespace(), {})
    assert settings_from(Namespace(store="here"), {}).store == Path("here")


@given(st.text(min_size=1))
def test_no_name_leads_out_of_the_folder_of_agents(name: str) -> None:
    folder = folder_name(name)
    assert Path(folder).name == folder
    assert folder not in (".", "..")
    assert not folder.startswith(".")


@given(st.text(min_size=1), st.text(min_size=1))
def test_different_names_have_different_folders(one: str, other: str) -> None:
    assert (folder_name(one) == folder_name(other)) == (one == other)


@pytest.mark.parametrize(
    "options",
    [
        {"relay": "http://host"},
        {"registry": "ws://host"},
        {"name": "tab\there"},
        {"name": "  "},
        {"ca": "/nowhere/to/be/found"},
    ],
)
def test_what_cannot_work_is_refused_at_once(options: dict[str, str]) -> None:
    with pytest.raises(InvalidValue):
        settings_from(Namespace(**options), HOME)


def test_file_without_certificates_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(InvalidValue, match="--ca"):
        settings_from(Namespace(ca=str(tmp_path / "ca.pem")), HOME)


@pytest.mark.parametrize("content", [b"", b"\nsecond line", b"\xff\xfe"])
def test_passphrase_file_must_say_something(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(StoreError, match="passphrase file"):
        settings_from(Namespace(passphrase_file=str(tmp_path / "file")), HOME)


def test_passphrase_is_the_first_line_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b" two words \r\nmore")
    settings = settings_from(Namespace(passphrase_file=str(tmp_path / "file")), HOME)
    assert settings.passphrase == " two words "
    assert "two words" not in repr(settings)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TransportError("x"), Exit.FAILED),
        (QueueFull("x"), Exit.FAILED),
        (InvalidValue("x"), Exit.USAGE),
        (AgentNotFound("x"), Exit.REFUSED),
        (AmbiguousName("x", []), Exit.REFUSED),
        (RelayRefused(4005, "x"), Exit.REFUSED),
        (RegistryRefused(403, "x"), Exit.REFUSED),
        (KnockRefused("x", "y"), Exit.REFUSED),
        (NotAuthentic("x"), Exit.REFUSED),
        (IdentityInUse("x"), Exit.STORE),
        (StoreError("x"), Exit.STORE),
        (MeshError("x"), Exit.FAILED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, MeshError) else "",
)
def test_exit_status_tells_whose_fault_it_is(error: MeshError, code: Exit) -> None:
    assert exit_for(error) is code
