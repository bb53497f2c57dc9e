"""``mesh hermes-plugin``: put the tools into a Hermes that has not installed meshlib."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from meshlib.cli.exits import Exit
from meshlib.cli.output import Console
from meshlib.errors import InvalidValue, StoreError
from meshlib.tools.hermes_folder import FOLDER, plugin_files


def install(arguments: Namespace, environment: Mapping[str, str], console: Console) -> int:
    """Write the plugin into the folder of Hermes."""
    configured = arguments.hermes_home or environment.get("HERMES_HOME")
    if not configured and not environment.get("HOME"):
        raise InvalidValue("where is Hermes? name its folder with --hermes-home, or set HERMES_HOME")
    home = Path(configured or Path(environment["HOME"]) / ".hermes")
    if not home.is_dir():
        raise InvalidValue(f"{home} is no folder: start Hermes once, or name its folder with --hermes-home")
    folder = home / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in plugin_files().items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror}") from error
    if console.json:
        console.emit(folder=str(folder))
    else:
        console.say(f"written to {folder}; add it to {home / 'config.yaml'}:")
        console.say("\nplugins:\n  enabled: [mesh]")
    return Exit.OK
