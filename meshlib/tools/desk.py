"""What lies on a model's desk between two calls of its tools.

Owns messages that were taken and not handed over, texts that were too long for one result, and the names by which
the model knows its peers. Leaves what the tools do to :mod:`meshlib.tools.definitions`.
"""

import logging
import os
from collections import OrderedDict, deque
from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from meshlib.errors import InvalidValue, MeshError
from meshlib.tools.results import Entropy, Fence

if TYPE_CHECKING:
    from meshlib.client.verbs import AnyMessage, Mesh
    from meshlib.identity import Did

log = logging.getLogger("meshlib.tools")

FILES = "MESH_FILES"
HOPS = "MESH_HOPS"
MOST_HOPS = 1_000
"""Larger counts say nothing more than this one."""
RESTS = 16
"""Long texts kept to be read on. With payloads of at most 512 KiB about 8 MiB."""
NAMES = 1_000
"""Names of peers remembered."""

T = TypeVar("T")


class Within(Protocol):
    """Waits for something, ``seconds`` at most; ``None`` when it has not come by then."""

    async def __call__(self, seconds: float, awaitable: Awaitable[T], /) -> T | None: ...


@dataclass(frozen=True)
class Permissions:
    """What the operator lets the model do."""

    folders: tuple[Path, ...] = ()
    """Files below these may be sent, hidden ones excepted; absolute."""
    never: tuple[Path, ...] = ()
    """Folders inside of those that stay closed: the store with the keys."""
    hops: int = 0
    """What requests carry: how many agents have passed work on before."""

    def file(self, path: str) -> Path:
        """The real path of a file that may be sent.

        Links are followed first and the place they lead to is judged, so that no link leads out of the folders. Hidden
        files and folders hold credentials (``.ssh``, ``.env``, ``.git``) and stay closed.

        Raises:
            InvalidValue: it may not, or there is none.
        """
        if not self.folders:
            raise InvalidValue("no folder is open for sending files: the operator names one, see --files")
        open_to = " or ".join(str(folder) for folder in self.folders[:3])
        try:
            asked = Path(path)
            real = (asked if asked.is_absolute() else self.folders[0] / asked).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            # The same words whether it is missing or out of bounds: the model must not map the disk by asking.
            raise InvalidValue(f"no such file below {open_to}") from None
        inside = [folder for folder in self.folders if real.is_relative_to(folder)]
        if not inside or any(real.is_relative_to(folder) for folder in self.never):
            raise InvalidValue(f"no such file below {open_to}")
        if all(any(part.startswith(".") for part in real.relative_to(folder).parts) for folder in inside):
            raise InvalidValue("hidden files and files in hidden folders are not sent: they tend to hold credentials")
        if not real.is_file():
            raise InvalidValue("only regular files can be sent: pack a folder into an archive first")
        return real


def permissions_from(
    environment: Mapping[str, str], cwd: Path, folders: Sequence[str] | None = None, store: Path | None = None
) -> Permissions:
    """What the operator lets the model do.

    Args:
        environment: ``MESH_FILES`` names folders, ``MESH_HOPS`` how many agents have passed on what the model works on.
        cwd: the folder that is open when the operator names none.
        folders: named by the operator in another way.
        store: stays closed.
    Raises:
        InvalidValue: a folder is none.
    """
    if folders is None and environment.get(FILES):
        folders = [folder for folder in environment[FILES].split(os.pathsep) if folder]
    if folders is None:
        home = environment.get("HOME") or environment.get("USERPROFILE")
        opened = default_folders(cwd, Path(home) if home else None)
    else:
        opened = tuple(Path(folder).resolve() for folder in folders)
        for folder in opened:
            if not folder.is_dir():
                raise InvalidValue(f"{folder} is no folder: files can be sent from folders that exist")
    before = environment.get(HOPS, "")
    hops = min(int(before[:9]), MOST_HOPS) + 1 if before.isascii() and before.isdigit() else 0
    return Permissions(opened, never=(store.resolve(),) if store is not None else (), hops=hops)


def default_folders(cwd: Path, home: Path | None) -> tuple[Path, ...]:
    """The folders that are open when the operator says nothing: the current one, unless it holds the whole home.

    Programs on a desktop start their tool servers in ``/`` or in the home folder. All of that is too much.
    """
    here = cwd.resolve()
    if here.parent == here or (home is not None and home.resolve().is_relative_to(here)):
        return ()
    return (here,)


@dataclass(slots=True)
class Rest:
    """A text of which the model has read a part."""

    text: str
    source: str
    message: "AnyMessage | None" = None
    """What is confirmed once the text was read to its end."""


@dataclass
class Desk:
    """The state the tools share.

    Args:
        mesh: whose tools these are.
        within: bounds a wait.
        entropy: for the numbers of fences.
    """

    mesh: "Mesh"
    within: Within
    permissions: Permissions
    entropy: Entropy
    _returned: "deque[AnyMessage]" = field(default_factory=deque)
    _rests: "OrderedDict[str, Rest]" = field(default_factory=OrderedDict)
    _names: "OrderedDict[Did, str]" = field(default_factory=OrderedDict)

    @property
    def fence(self) -> Fence:
        """A fence for one result."""
        return Fence(self.entropy)

    def know(self, did: "Did", name: str) -> None:
        """The model calls this peer by a name."""
        if not name.startswith("did:"):
            self._names[did] = name
            while len(self._names) > NAMES:
                self._names.popitem(last=False)

    def name_of(self, did: "Did") -> str | None:
        """The name the model used for a peer, if it did."""
        return self._names.get(did)

    async def did_of(self, peer: str) -> "Did":
        """The DID of a peer; its name is remembered."""
        did = await self.mesh.resolve(peer)
        self.know(did, peer)
        return did

    # --- messages ----------------------------------------------------------------------------------------------------

    async def next_message(self, senders: "Collection[Did] | None", patience: float) -> "AnyMessage | None":
        """The next message of one of ``senders``; those that were taken and put back come first."""
        for message in self._returned:
            if senders is None or message.sender in senders:
                self._returned.remove(message)
                return message
        return await self.within(max(0.0, patience), self.mesh.receive(senders))

    def put_back(self, messages: "Collection[AnyMessage]") -> None:
        """Messages the model has not seen after all, in the order in which they were taken."""
        self._returned.extendleft(reversed(list(messages)))

    # --- long texts --------------------------------------------------------------------------------------------------

    async def keep(self, key: str, rest: Rest) -> None:
        """Keep a text to be read on. The one kept longest makes room, and counts as read."""
        self._rests[key] = rest
        self._rests.move_to_end(key)
        while len(self._rests) > RESTS:
            _, oldest = self._rests.popitem(last=False)
            if oldest.message is not None:
                await confirmed(oldest.message)

    def rest(self, key: str) -> Rest:
        """A text that is kept.

        Raises:
            InvalidValue: there is none of that id.
        """
        rest = self._rests.get(key)
        if rest is None:
            raise InvalidValue("no text of this id is kept any more: only the last 16 long ones are, while this runs")
        return rest

    def finish(self, key: str) -> "AnyMessage | None":
        """The model has read a text to its end. Returns the message to confirm, if it was one."""
        rest = self._rests.get(key)
        if rest is None:
            return None
        message, rest.message = rest.message, None
        return message


async def confirmed(message: "AnyMessage") -> None:
    """Confirm a message that was handed over; if that fails it comes again, and nothing is lost."""
    try:
        await message.ack()
    except MeshError as error:
        log.warning("a message of %s could not be confirmed and will come again: %s", message.sender, error)
