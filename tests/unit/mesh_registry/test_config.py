from pathlib import Path

import pytest
from mesh_registry.config import Config, default_store, parse

from meshlib.buckets import Rate
from meshlib.serving.certificates import TlsFiles


def config(*arguments: str, **environment: str) -> Config:
    return parse(("serve", *arguments), environment, "1")


def test_defaults_are_safe() -> None:
    chosen = config(HOME="/home/a")
    assert (chosen.host, chosen.port) == ("127.0.0.1", 8082)
    assert chosen.store == Path("/home/a/.local/state/mesh-registry/registry.db")
    assert not chosen.policy.allow_legacy
    assert chosen.issuer is None
    assert chosen.trusted_proxies == ""


def test_the_state_folder_is_where_the_desktop_says() -> None:
    assert default_store({"XDG_STATE_HOME": "/state"}) == Path("/state/mesh-registry/registry.db")
    assert default_store({"XDG_STATE_HOME": "relative", "HOME": "/h"}) == Path(
        "/h/.local/state/mesh-registry/registry.db"
    )


def test_the_environment_sets_every_option_and_the_command_line_wins() -> None:
    environment = {
        "MESH_REGISTRY_HOST": "0.0.0.0",
        "MESH_REGISTRY_PORT": "1234",
        "MESH_REGISTRY_STORE": ":memory:",
        "MESH_REGISTRY_ALLOW_LEGACY": "true",
        "MESH_REGISTRY_DISCOVERABLE_DAYS": "1.5",
        "MESH_REGISTRY_EXPIRE_DAYS": "2",
        "MESH_REGISTRY_REGISTRATIONS_PER_ADDRESS": "7/0.25",
        "MESH_REGISTRY_KEYS_PER_TARGET": "10/0.5",
        "MESH_REGISTRY_KEYS_PER_REQUESTER": "20/1",
        "MESH_REGISTRY_LOOKUPS_PER_REQUESTER": "30/2",
        "MESH_REGISTRY_EXEMPT_LOOPBACK": "no",
        "MESH_REGISTRY_HEAD_SECONDS": "2.5",
        "MESH_REGISTRY_PIPELINED": "3",
        "MESH_REGISTRY_OIDC_ISSUER": "https://issuer.test",
        "MESH_REGISTRY_OIDC_AUDIENCE": "mesh",
        "MESH_REGISTRY_MAX_AGENTS": "5",
        "MESH_REGISTRY_MAX_CONNECTIONS": "6",
        "MESH_REGISTRY_TRUSTED_PROXIES": "10.0.0.1",
        "MESH_REGISTRY_LOG_LEVEL": "DEBUG",
        "MESH_REGISTRY_LOG_FORMAT": "json",
    }
    chosen = config(**environment)
    assert (chosen.host, chosen.port, chosen.store) == ("0.0.0.0", 1234, None)
    assert chosen.policy.lookups == Rate(30, 2)
    assert not chosen.exempt_loopback
    assert (chosen.limits.head_seconds, chosen.limits.pipelined) == (2.5, 3)
    assert chosen.policy.allow_legacy
    assert chosen.policy.verify_tokens
    assert chosen.policy.discoverable_for == 129_600
    assert (chosen.policy.expire_after, chosen.policy.registrations) == (172_800, Rate(7, 0.25))
    assert (chosen.policy.keys_per_target, chosen.policy.keys_per_requester) == (Rate(10, 0.5), Rate(20, 1))
    assert (chosen.max_agents, chosen.max_connections, chosen.trusted_proxies) == (5, 6, "10.0.0.1")
    assert (chosen.log_level, chosen.log_format) == ("debug", "json")
    chosen = config("--port", "0", "--no-allow-legacy", "--store", "x.db", **environment)
    assert (chosen.port, chosen.policy.allow_legacy, chosen.store) == (0, False, Path("x.db"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--port", "65536"),
        ("--port", "-1"),
        ("--port", "http"),
        ("--keys-per-target", "5"),
        ("--keys-per-target", "nan/1"),
        ("--discoverable-days", "0"),
        ("--max-agents", "0"),
        ("--log-level", "loud"),
        ("--oidc-issuer", "https://issuer.test"),
        ("--unknown",),
    ],
)
def test_what_cannot_work_is_said_at_once(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        config(*arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err


def test_a_bad_environment_is_said_at_once() -> None:
    with pytest.raises(SystemExit):
        config(MESH_REGISTRY_PORT="99999")


@pytest.mark.parametrize(("name", "text"), [("HEAD_SECONDS", "-1"), ("PIPELINED", "1.5"), ("HEAD_SIZE", "big")])
def test_a_limit_that_is_none_ends_the_program(name: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        config(**{f"MESH_REGISTRY_{name}": text})
    assert ended.value.code == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "port"), [((), 8082), (("--unix", "/s"), None), (("--unix", "/s", "--port", "1"), 1)]
)
def test_a_path_is_instead_of_tcp_unless_that_is_named(given: tuple[str, ...], port: int | None) -> None:
    assert config(*given).port == port


def test_tls_needs_certificate_and_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert config().tls is None
    files = config("--tls-cert", "c.pem", MESH_REGISTRY_TLS_KEY="k.pem", MESH_REGISTRY_TLS_CLIENT_CA="ca.pem").tls
    assert files == TlsFiles(Path("c.pem"), Path("k.pem"), Path("ca.pem"))
    for alone in ("--tls-cert", "--tls-key", "--tls-client-ca"):
        with pytest.raises(SystemExit) as refused:
            config(alone, "x")
        assert refused.value.code == 2
        assert "--tls-cert" in capsys.readouterr().err
