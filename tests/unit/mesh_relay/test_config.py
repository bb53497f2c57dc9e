"""Settings: the environment as a mapping, the command line above it."""

import dataclasses
from pathlib import Path

import pytest
from mesh_relay.config import Limits, RelayConfig, default_store

from meshlib.errors import InvalidValue
from meshlib.serving.certificates import TlsFiles


def test_the_environment_is_read_and_the_command_line_wins() -> None:
    environment = {
        "MESH_RELAY_HOST": "0.0.0.0",
        "MESH_RELAY_PORT": "9000",
        "MESH_RELAY_ALLOW_LEGACY": "true",
        "MESH_RELAY_TTL": "60.5",
        "MESH_RELAY_DURABILITY": "strict",
        "MESH_RELAY_LOG_FORMAT": "json",
        "MESH_RELAY_PAIR_FRAMES": "7",
        "MESH_RELAY_IDLE_SECONDS": "1.5",
    }
    config = RelayConfig.from_mapping(environment, port="0", store=":memory:", host=None)
    assert config == RelayConfig(
        host="0.0.0.0",
        port=0,
        store=":memory:",
        allow_legacy=True,
        ttl=60.5,
        durability="strict",
        log_format="json",
        limits=Limits(pair_frames=7, idle_seconds=1.5),
    )


def test_an_empty_environment_gives_the_defaults() -> None:
    assert RelayConfig.from_mapping({}) == RelayConfig(store="mesh-relay.db")


@pytest.mark.parametrize(
    ("given", "port"),
    [({}, 8083), ({"UNIX": "/s"}, None), ({"UNIX": "/s", "PORT": "1"}, 1), ({"UNIX": "/s", "HOST": "::"}, 8083)],
)
def test_a_path_is_instead_of_tcp_unless_that_is_named(given: dict[str, str], port: int | None) -> None:
    assert RelayConfig.from_mapping({f"MESH_RELAY_{name}": value for name, value in given.items()}).port == port


def test_tls_needs_certificate_and_key() -> None:
    files = {"tls_cert": "c.pem", "tls_key": "k.pem", "tls_client_ca": "ca.pem"}
    assert RelayConfig.from_mapping({}).tls is None
    assert RelayConfig.from_mapping({}, **files).tls == TlsFiles(Path("c.pem"), Path("k.pem"), Path("ca.pem"))
    for alone in files:
        with pytest.raises(InvalidValue, match="tls_cert"):
            RelayConfig.from_mapping({}, **{alone: files[alone]})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("UNIX_MODE", "999"),
        ("UNIX_MODE", "rw"),
        ("TTL", "0"),
        ("DRAIN_SECONDS", "-1"),
        ("DRAIN_SECONDS", "nan"),
        ("TTL", "nan"),
        ("TTL", "inf"),
        ("ALLOW_LEGACY", "perhaps"),
        ("DURABILITY", "none"),
        ("LOG_LEVEL", "loud"),
        ("PAIR_FRAMES", "1.5"),
        ("PAIR_FRAMES", "-1"),
        ("IDLE_SECONDS", "soon"),
    ],
)
def test_a_bad_value_is_named(name: str, value: str) -> None:
    with pytest.raises(InvalidValue, match=f"{name.lower()} is .*{value}"):
        RelayConfig.from_mapping({f"MESH_RELAY_{name}": value})


@pytest.mark.parametrize(
    ("environment", "path"),
    [
        ({"STATE_DIRECTORY": "/var/lib/mesh:/other", "HOME": "/home/a"}, "/var/lib/mesh/relay.db"),
        ({"XDG_STATE_HOME": "/state", "HOME": "/home/a"}, "/state/mesh/relay.db"),
        ({"HOME": "/home/a"}, "/home/a/.local/state/mesh/relay.db"),
        ({}, "mesh-relay.db"),
    ],
)
def test_the_store_has_a_sensible_place(environment: dict[str, str], path: str) -> None:
    assert default_store(environment) == path


def test_every_limit_is_a_positive_number() -> None:
    for limit in dataclasses.fields(Limits):
        assert limit.type in (int, float)
        assert isinstance(limit.default, int | float)
        assert limit.default > 0
