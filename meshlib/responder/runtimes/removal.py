"""Removes a folder whatever a program has made of it: closed folders, links, and folders in folders in folders.

Folders are emptied into the one to be removed, which never gets deeper, so no depth of them is too much for a path or
for the interpreter's stack.
"""

import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

from meshlib.logs import LogEvent

log = logging.getLogger("meshlib.responder")

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def remove(root: Path) -> None:
    """Remove a folder and all that is in it. Follows no link, and never raises: what cannot go is told to the log.

    Nobody may change anything in it meanwhile: the program has ended.
    """
    try:
        if stat.S_ISDIR(root.lstat().st_mode):
            root.chmod(stat.S_IRWXU)
        top = os.open(root, _FOLDER)
        try:
            _clear(top)
        finally:
            os.close(top)
        root.rmdir()
    except OSError as error:
        log.warning(LogEvent("folder_left_behind", folder=root, detail=error.strerror))


def _clear(top: int) -> None:
    prefix = os.urandom(8).hex()
    moved = 0
    folders = _empty(top)
    while folders:
        name = folders.pop()
        with suppress(OSError):
            folder = os.open(name, _FOLDER, dir_fd=top)
            try:
                for below in _empty(folder):
                    moved += 1
                    with suppress(OSError):
                        os.rename(below, f"{prefix}-{moved}", src_dir_fd=folder, dst_dir_fd=top)
                        folders.append(f"{prefix}-{moved}")
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=top)


def _empty(folder: int) -> list[str]:
    """Remove all that is no folder; returns the names of the folders, which can be read and moved then."""
    folders = []
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        with suppress(OSError):
            if is_folder:
                os.chmod(name, stat.S_IRWXU, dir_fd=folder)
                folders.append(name)
            else:
                os.unlink(name, dir_fd=folder)
    return folders
