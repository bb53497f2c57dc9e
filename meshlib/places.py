"""Where agents of this user keep what they know. Loads nothing: plugins in foreign interpreters look here, too."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from meshlib.errors import InvalidValue

_NAMELESS = "default"


def data_home(environment: Mapping[str, str]) -> Path:
    """Where programs of this user keep data: ``$XDG_DATA_HOME``, else ``~/.local/share``.

    Raises:
        InvalidValue: there is no home folder.
    """
    configured = environment.get("XDG_DATA_HOME", "")
    if configured and Path(configured).is_absolute():
        return Path(configured)
    home = environment.get("HOME") or environment.get("USERPROFILE")
    if not home:
        raise InvalidValue("there is no home folder to keep things in: name one with --store, or set HOME")
    return Path(home) / ".local" / "share"


def folder_name(name: str | None) -> str:
    """The folder of an agent: its name, with everything that could lead to another folder spelled out."""
    quoted = quote(name or _NAMELESS, safe=" ", errors="backslashreplace")
    return quoted.replace(".", "%2E", 1) if quoted.startswith(".") else quoted


def store_folder(name: str | None, environment: Mapping[str, str]) -> Path:
    """The store of an agent that was given none."""
    return data_home(environment) / "mesh" / folder_name(name)
