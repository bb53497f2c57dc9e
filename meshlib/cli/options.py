"""From arguments and environment to frozen settings. The environment is an argument; nothing here reads a process's."""

import ssl
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from meshlib.config import ClientConfig, KnockPolicy, Timeouts, accept_everyone
from meshlib.errors import InvalidValue, StoreError
from meshlib.places import store_folder

VARIABLES: Mapping[str, tuple[str, ...]] = {
    "relay": ("MESH_RELAY_URL", "AGT_RELAY_URL"),
    "registry": ("MESH_REGISTRY_URL", "AGT_REGISTRY_URL"),
    "name": ("MESH_NAME", "SANDBOX_NAME"),
    "store": ("MESH_STORE",),
    "token": ("MESH_TOKEN", "AGT_OAUTH_TOKEN"),
    "proxy": ("MESH_PROXY",),
    "ca": ("MESH_CA",),
    "cert": ("MESH_CERT",),
    "key": ("MESH_KEY",),
    "passphrase_file": ("MESH_PASSPHRASE_FILE",),
    "responder": ("MESH_RESPONDER", "KARS_MESH_AUTO_RESPONDER"),
    "worker_timeout": ("MESH_WORKER_TIMEOUT", "KARS_MESH_WORKER_TIMEOUT_S"),
    "log_format": ("MESH_LOG_FORMAT",),
    "incoming": ("MESH_INCOMING", "KARS_INCOMING_DIR"),
}
"""Environment variables by option, ours first; the others are what agent runtimes already set."""

CONNECT_SECONDS = 10.0
"""People wait: a command gives up on a relay sooner than an agent that runs for days."""

_MAX_PASSPHRASE = 4096


@dataclass(frozen=True)
class Settings:
    """What the options of every client command come to."""

    relay_url: str
    registry_url: str
    store: Path
    name: str | None = None
    token: str | None = field(default=None, repr=False)
    proxy: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    passphrase: str | None = field(default=None, repr=False)
    incoming: Path | None = None
    """Where files of peers go, in commands that receive."""

    def client(
        self,
        knock_policy: KnockPolicy = accept_everyone,
        patience: float = CONNECT_SECONDS,
        *,
        receiving: bool = False,
    ) -> ClientConfig:
        """The configuration of this agent.

        Args:
            receiving: take files of peers, if a folder for them was named.
            patience: seconds until a relay that cannot be reached ends the command.
        """
        half = min(patience, CONNECT_SECONDS) / 2
        return ClientConfig(
            timeouts=Timeouts(connect=half, proof=half),
            name=self.name,
            store=self.store,
            passphrase=self.passphrase,
            relay_url=self.relay_url,
            registry_url=self.registry_url,
            token=self.token,
            proxy=self.proxy,
            tls=self.tls,
            knock_policy=knock_policy,
            incoming=self.incoming if receiving else None,
        )


def settings_from(arguments: Namespace, environment: Mapping[str, str]) -> Settings:
    """Read the common options: the command line first, then the environment, then the defaults.

    Raises:
        InvalidValue: an option cannot work; the message names it.
        StoreError: the passphrase file cannot be read.
    """
    chosen = {option: chosen_option(arguments, environment, option) for option in VARIABLES}
    name = chosen["name"]
    if name is not None and not (name.isprintable() and name.strip()):
        raise InvalidValue("--name must be printable text")
    defaults = ClientConfig()
    settings = Settings(
        relay_url=chosen["relay"] or defaults.relay_url,
        registry_url=chosen["registry"] or defaults.registry_url,
        store=Path(chosen["store"]) if chosen["store"] else store_folder(name, environment),
        name=name,
        token=chosen["token"],
        proxy=chosen["proxy"],
        tls=_tls(chosen["ca"], chosen["cert"], chosen["key"]),
        passphrase=_passphrase(chosen["passphrase_file"]),
        incoming=Path(chosen["incoming"]) if chosen["incoming"] else None,
    )
    settings.client()  # refuses at once what cannot work
    return settings


def chosen_option(arguments: Namespace, environment: Mapping[str, str], option: str) -> str | None:
    """What an option is: as given, else the first of its variables that says something."""
    given: str | None = getattr(arguments, option, None)
    if given is not None:
        return given
    return next((value for variable in VARIABLES[option] if (value := environment.get(variable))), None)


def _tls(ca: str | None, certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    """What we trust, and what we show. A key may stand in the certificate's file."""
    if key is not None and certificate is None:
        raise InvalidValue("--key needs --cert, the certificate it belongs to")
    if ca is None and certificate is None:
        return None
    context = ssl.create_default_context()
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except (OSError, ssl.SSLError) as error:
            raise InvalidValue(f"--ca {ca}: no certificates can be read from it ({error.strerror or error})") from error
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key, password=_no_passphrase)
        except (OSError, ssl.SSLError) as error:
            raise InvalidValue(
                f"--cert {certificate} and its key cannot be used ({error.strerror or error}): both are PEM and "
                "belong together"
            ) from error
    return context


def _no_passphrase() -> str:
    raise InvalidValue("--key has a passphrase, which nobody would be asked for: take it off")


def _passphrase(file: str | None) -> str | None:
    """The first line of the file. A file, because arguments and environments of a process are easily seen."""
    if file is None:
        return None
    try:
        with Path(file).open(encoding="utf-8") as opened:
            line = opened.readline(_MAX_PASSPHRASE).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"the passphrase file {file} cannot be read: {getattr(error, 'strerror', error)}") from error
    if not line:
        raise StoreError(f"the passphrase file {file} has an empty first line")
    return line
