"""Every exception meshlib raises, as one tree: the type says whose fault it is and what to do next.

    MeshError
    ├── UsageError            the caller's call cannot work: change the call
    │   ├── InvalidValue      an argument is out of range or of the wrong shape
    │   ├── NotConnected      the client is not open: enter it first
    │   ├── SessionNotReady   a responder sends before it has received
    │   ├── IdentityInUse     another process holds this identity
    │   └── QueueFull         the outbox or inbox has reached its bound
    ├── PeerError             a peer, or somebody in its name, sent what cannot be taken
    │   ├── MalformedFrame    bytes that are no frame, or a frame with impossible members
    │   ├── NotAuthentic      a signature, a tag or a binding does not verify
    │   │   └── WeakKey       a public key of low order
    │   ├── Replayed          authentic once, seen before
    │   ├── TooManySkipped    the gap to the message is larger than the bound
    │   ├── UnknownPrekey     an opening names a prekey that is not held any more
    │   ├── KnockRefused      the peer does not want to talk
    │   ├── TaskFailed        the peer answered that it did not do what it was asked for
    │   └── TransferFailed    a file did not get to the peer, or not from it
    ├── ServiceError          relay or registry answered and said no
    │   ├── RelayRefused
    │   ├── RegistryRefused
    │   ├── AgentNotFound     no agent of that name or DID
    │   └── AmbiguousName     several agents share the name
    ├── TransportError        no answer at all: retry later
    │   ├── DaemonNotRunning  no process on this machine owns the identity for others
    │   └── TaskUnfinished    a task was not answered in time; says how far it had come
    └── StoreError            the local store cannot be read or written

Facts ride as attributes. No message and no attribute holds a key, a payload or a token.
"""

from collections.abc import Sequence


class MeshError(Exception):
    """Base of everything meshlib raises on purpose."""


class UsageError(MeshError):
    """The call cannot work as it was made."""


class InvalidValue(UsageError, ValueError):
    """An argument is out of range or of the wrong shape."""


class NotConnected(UsageError):
    """The client is not open: use it inside ``async with``."""


class SessionNotReady(UsageError):
    """The responder of a session cannot send before it has received a message."""


class IdentityInUse(UsageError):
    """Another process uses this identity. One process per identity keeps ratchets from forking."""


class QueueFull(UsageError):
    """A bounded queue is full: wait for deliveries, then send again."""


class PeerError(MeshError):
    """What arrived in a peer's name cannot be taken. Nothing has changed."""


class MalformedFrame(PeerError):
    """Bytes that are no frame, or a frame whose members are impossible.

    ``sender``, ``id`` and ``frame_type`` tell what could still be read, so that the frame can be reported and
    acknowledged; each is None when it could not. They are claims of whoever sent the bytes, not facts.
    """

    def __init__(
        self,
        message: str,
        *,
        sender: str | None = None,
        id: str | None = None,  # noqa: A002  # the name of the member
        frame_type: str | None = None,
    ) -> None:
        super().__init__(message)
        self.sender = sender
        self.id = id
        self.frame_type = frame_type


class NotAuthentic(PeerError):
    """A signature, an authentication tag or a key binding does not verify."""


class WeakKey(NotAuthentic):
    """A public key of low order: the shared secret would be known to everyone."""


class Replayed(PeerError):
    """The message was authentic and has been taken before."""


class TooManySkipped(PeerError):
    """More messages are missing before this one than the session is willing to keep keys for."""

    def __init__(self, gap: int, limit: int) -> None:
        super().__init__(f"{gap} messages are missing before this one; the limit is {limit}")
        self.gap = gap
        self.limit = limit


class UnknownPrekey(PeerError):
    """The opening names a prekey that is used up, retired or was never ours."""

    def __init__(self, key_id: int) -> None:
        super().__init__(f"prekey {key_id} is not held any more; the peer must fetch a fresh bundle and knock again")
        self.key_id = key_id


class KnockRefused(PeerError):
    """The peer refuses to talk to us."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(f"{peer} refused the knock: {reason}")
        self.peer = peer
        self.reason = reason


class TaskFailed(PeerError):
    """The peer answered that it did not do what it was asked for.

    ``error`` says why, ``refused``, ``busy``, ``timeout``, ``cancelled``, ``failed``, ``lost``, or
    another word of the peer's. ``content`` says it in the peer's words, which are untrusted.
    """

    def __init__(self, peer: str, request_id: str, error: str, content: str) -> None:
        super().__init__(f"{peer} did not do the task ({error})")
        self.peer = peer
        self.request_id = request_id
        self.error = error
        self.content = content


class TransferFailed(PeerError):
    """A file did not get there; nothing of it was delivered.

    ``reason`` says why: ``refused`` (not wanted), ``quota`` (no room), ``mismatch`` (not what was sent), ``cancelled``,
    ``changed`` (the file, while it was sent), ``expired`` (too long without a word), ``failed``.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class ServiceError(MeshError):
    """A relay or a registry answered, and said no."""


class RelayRefused(ServiceError):
    """The relay closed the connection with a code that a retry does not change."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the relay refused the connection ({code}): {reason}")
        self.code = code
        self.reason = reason


class RegistryRefused(ServiceError):
    """The registry answered with an error status."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"the registry answered {status}: {detail}")
        self.status = status
        self.detail = detail


class AgentNotFound(ServiceError):
    """The registry knows no agent of that name or DID."""

    def __init__(self, agent: str) -> None:
        super().__init__(f"no agent {agent!r} at the registry: check the name, or wait until it has registered")
        self.agent = agent


class AmbiguousName(ServiceError):
    """Several agents share a display name: address one by its DID."""

    def __init__(self, name: str, dids: Sequence[str]) -> None:
        super().__init__(f"{len(dids)} agents are called {name!r}, address one by its DID: {', '.join(dids)}")
        self.name = name
        self.dids = tuple(dids)


class TransportError(MeshError):
    """No answer: the connection failed or timed out. Retrying later can help."""


class DaemonNotRunning(TransportError):
    """Nobody listens on the socket of a store: no daemon owns its identity for others."""


class TaskUnfinished(TransportError):
    """A task was not answered in time. ``state`` says how far it had come, see :class:`meshlib.TaskState`."""

    def __init__(self, peer: str, request_id: str, state: str, detail: str) -> None:
        super().__init__(f"the task for {peer} is {state}: {detail}")
        self.peer = peer
        self.request_id = request_id
        self.state = state


class StoreError(MeshError):
    """The local store cannot be read or written."""
