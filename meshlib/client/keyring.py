"""Our own prekeys: which are published, which are held, which are retired.

Owns prekey lifetimes and ids. An id is never used twice: an opening that names an old one must fail, not meet
another key. Leaves publishing to the shell and consuming to the core, which does it with the first authentic message.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from meshlib.clock import Instant
from meshlib.config import Prekeys
from meshlib.crypto.keys import Entropy
from meshlib.crypto.prekeys import OneTimePrekey, SignedPrekey, make_one_time_prekeys, make_signed_prekey
from meshlib.identity import Identity

FIRST_ID = 1
_ID_SPACE = 2**31


@dataclass(frozen=True, slots=True)
class DatedPrekey:
    """A signed prekey and when it was made (UTC seconds)."""

    prekey: SignedPrekey
    made: float


@dataclass(frozen=True, slots=True)
class PrekeyUpload:
    """What goes to the registry: the current signed prekey and one-time keys that were never published."""

    signed: SignedPrekey
    one_time: tuple[OneTimePrekey, ...]


@dataclass
class Keyring:
    """The prekeys of one identity. Mutable, owned by one core."""

    identity: Identity
    policy: Prekeys
    signed: list[DatedPrekey] = field(default_factory=list)
    """The current one first."""
    one_time: dict[int, OneTimePrekey] = field(default_factory=dict)
    """Unused ones by id, oldest first."""
    next_id: int = FIRST_ID
    """:data:`FIRST_ID` in a new store."""

    def prekeys(self) -> tuple[SignedPrekey, ...]:
        """Signed prekeys an opening may have meant, the current one first."""
        return tuple(dated.prekey for dated in self.signed)

    @property
    def runs_low(self) -> bool:
        """Whether so many one-time keys were used that the registry may have few left."""
        return len(self.one_time) < self.policy.top_up_below

    def refresh(self, now: Instant) -> bool:
        """Forget signed prekeys past their time. Returns whether a new one is due."""
        lifetime = self.policy.rotate_after + self.policy.usable_after_rotation
        self.signed = [dated for dated in self.signed if now.utc - dated.made < lifetime]
        return not self.signed or now.utc - self.signed[0].made >= self.policy.rotate_after

    def replenish(self, published: int, now: Instant, entropy: Entropy) -> PrekeyUpload:
        """Make what is missing for ``published`` keys at the registry to become as many as the policy wants."""
        if self.next_id == FIRST_ID:
            # A new store may follow one that was lost. Ids that start where the clock is do not repeat those that the
            # lost one published, so an old knock fails instead of meeting another key.
            self.next_id = max(FIRST_ID, int(now.utc * 64) % _ID_SPACE)
        if self.refresh(now):
            self.signed.insert(0, DatedPrekey(make_signed_prekey(self.identity, self.next_id, entropy), now.utc))
            self.next_id += 1
        fresh = make_one_time_prekeys(self.next_id, max(0, self.policy.one_time - published), entropy)
        self.next_id += len(fresh)
        self.one_time.update((key.key_id, key) for key in fresh)
        while len(self.one_time) > self.policy.held:
            del self.one_time[next(iter(self.one_time))]
        return PrekeyUpload(self.signed[0].prekey, tuple(fresh))

    def spend(self, key_id: int) -> None:
        """Delete a one-time key: a message has authenticated with it."""
        self.one_time.pop(key_id, None)

    def restore(self, signed: Iterable[DatedPrekey], one_time: Mapping[int, OneTimePrekey], next_id: int) -> None:
        """Take over what a store kept."""
        self.signed = sorted(signed, key=lambda dated: dated.made, reverse=True)
        self.one_time = dict(one_time)
        self.next_id = next_id
