"""
The specification of a store for the explorer: one key, and each function one atomic step (R1 to R5).

Durations are not modelled: a lease has lapsed or not, and a record stays until it is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from idempotency._core.types import (
    Acquired,
    Claim,
    Completed,
    Fingerprint,
    Owner,
    Record,
    Running,
    State,
    StorageKey,
)

if TYPE_CHECKING:
    from interleavings import World

__all__ = ["KEY", "StoredRecord", "acquire", "complete", "get", "release"]

KEY = StorageKey("k")


class StoredRecord(NamedTuple):
    """The record of the one key; *life* is the number of the record among all that the key has had."""

    life: int
    fingerprint: bytes
    owner: bytes
    attempt: int
    lapsed: bool
    outcome: bytes | None


def acquire(world: World, fingerprint: bytes, owner: Owner, *, takeover: bool) -> tuple[Any, World]:
    kept = world.kept
    if kept is None:
        lives = world.lives + 1
        kept = StoredRecord(lives, fingerprint, owner, 1, lapsed=False, outcome=None)
        return Acquired(Claim(KEY, owner, 1, lives)), world._replace(kept=kept, lives=lives)
    if kept.outcome is not None:
        return Completed(Fingerprint(kept.fingerprint), kept.outcome, 0.0, 1.0), world
    if kept.owner == owner:
        return Acquired(Claim(KEY, owner, kept.attempt, kept.life)), world
    if not kept.lapsed:
        return Running(Fingerprint(kept.fingerprint), 1.0), world
    if kept.fingerprint == fingerprint and takeover:
        kept = kept._replace(owner=owner, attempt=kept.attempt + 1, lapsed=False)
        claim = Claim(KEY, owner, kept.attempt, kept.life)
        return Acquired(claim), world._replace(kept=kept, takeovers=world.takeovers + 1)
    return Running(Fingerprint(kept.fingerprint), 0.0), world


def complete(world: World, claim: Claim, outcome: bytes) -> tuple[bool, World]:
    kept = world.kept
    if kept is None or kept.owner != claim.owner:
        return False, world
    if kept.outcome is not None:
        return True, world
    return True, world._replace(kept=kept._replace(outcome=outcome))


def release(world: World, claim: Claim) -> tuple[bool, World]:
    kept = world.kept
    if kept is None or kept.owner != claim.owner or kept.outcome is not None:
        return False, world
    return True, world._replace(kept=None)


def get(world: World) -> Record | None:
    kept = world.kept
    if kept is None:
        return None
    return Record(
        key=KEY,
        state=State.RUNNING if kept.outcome is None else State.COMPLETED,
        fingerprint=Fingerprint(kept.fingerprint),
        owner=Owner(kept.owner),
        attempt=kept.attempt,
        fence=kept.life,
        outcome=kept.outcome,
        lease_left=0.0 if kept.lapsed else 1.0,
        age=0.0,
        expires_in=1.0,
    )
