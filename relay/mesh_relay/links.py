"""Connections as the core sees them: a link, and the agent it is bound to once that has proved itself."""

from mesh_relay.addresses import Address, Bucket
from mesh_relay.admission import Admitted
from mesh_relay.mailboxes import Entry, Mailbox
from meshlib.clock import Instant
from meshlib.identity import Did


class Link:
    """One WebSocket as the core sees it. Until ``binding`` is set it has proved nothing."""

    __slots__ = ("address", "binding", "heard_at", "nonce", "open", "opened_at", "origin", "outgoing", "queued")

    def __init__(self, address: str, origin: Address | None, nonce: str, now: Instant) -> None:
        self.address = address
        self.origin = origin  # what its address may do; None for loopback
        self.nonce = nonce
        self.opened_at = self.heard_at = now.monotonic
        self.open = True
        self.queued = 0  # bytes sent to it that the network has not taken
        self.outgoing: list[bytes] | None = None  # what the effect holds that may still grow
        self.binding: Binding | None = None


class Binding:
    """A link that speaks as an agent."""

    __slots__ = (
        "acked",
        "acks_everything",
        "behind",
        "bucket",
        "controls",
        "cursor",
        "did",
        "earned",
        "fetching",
        "knocks",
        "knocks_bucket",
        "link",
        "loading",
        "mailbox",
        "pinged_at",
        "receipts",
        "superseded",
        "verified",
    )

    def __init__(self, link: Link, mailbox: Mailbox, admitted: Admitted, bucket: Bucket) -> None:
        self.link = link
        self.mailbox = mailbox
        self.did = mailbox.did
        self.verified = admitted.verified
        self.receipts = "receipts" in (admitted.features or ())
        self.acks_everything = admitted.features is not None
        self.bucket = bucket
        self.knocks_bucket: Bucket | None = None  # from the first knock on
        self.knocks = 0  # since it was heard last
        self.earned = 0  # acks since then that others have paid for: each removed a frame of theirs
        self.cursor = 0
        self.behind = mailbox.frames > 0
        self.loading = False
        self.pinged_at = 0.0
        self.fetching = False  # a fetch_pending waits for its answer
        self.acked: dict[Did, int] = {}  # the highest number acked, by sender; only for clients of the SDK's kind
        self.controls: dict[int, Entry] = {}  # pushed here, by number; only for clients that do not ack them
        # Copies pushed here that a newer one has replaced and that were not answered yet, by (sender, id).
        self.superseded: dict[tuple[str, str], int] = {}
