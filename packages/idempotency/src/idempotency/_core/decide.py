"""What to do: with a key that is taken before a run, and with the answer after it. Pure; the engine obeys."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from idempotency._core.errors import FingerprintMismatch, IdempotencyError, OutcomeUnknown
from idempotency._core.policy import Policy, unless_transient
from idempotency._core.recorded import check_seconds
from idempotency._core.types import Claim, Completed, Fingerprint, Running, StorageKey, key_id

__all__ = ["NOT_ROUTED", "Decision", "Execute", "Refuse", "Replay", "Wait", "decide", "settle"]


class Execute(NamedTuple):
    """Run the operation under *claim*."""

    claim: Claim
    waited: float = 0.0


class Replay(NamedTuple):
    """Answer with the recorded outcome; run nothing."""

    completed: Completed
    waited: float = 0.0


class Wait(NamedTuple):
    """A twin runs; its lease has *lease_left* seconds to go."""

    lease_left: float


class Refuse(NamedTuple):
    """Answer with the error's problem document; run nothing."""

    error: IdempotencyError


Decision: TypeAlias = Replay | Wait | Refuse


def decide(
    reply: Running | Completed, *, key: StorageKey, fingerprint: Fingerprint, takeover: bool
) -> Decision:
    """
    What a key that is taken means for the request that asked for it.

    A different fingerprint is a mismatch whatever the record's state (draft -07, 2.7): also while the first request
    runs, and after its lease.
    """
    if isinstance(reply, Running) and (wrong := check_seconds(reply.lease_left)) is not None:
        return Refuse(wrong)
    if reply.fingerprint != fingerprint:
        return Refuse(FingerprintMismatch(key_id=key_id(key)))
    if isinstance(reply, Completed):
        return Replay(reply)
    if reply.lease_left <= 0 and not takeover:
        return Refuse(OutcomeUnknown(key_id=key_id(key)))
    return Wait(reply.lease_left)


# Refusals that a layer beside the handler gives, before anything happened: they must not use a key up.
_BEFORE_THE_HANDLER = frozenset({401, 403, 405})

NOT_ROUTED = frozenset({307, 404})
"""What a router says itself: not found, or try it with a slash at the end (a client repeats that with the same key)."""


def settle(
    status: int, *, policy: Policy, routed: bool = True, handled: bool = True
) -> Literal["keep", "release"]:
    """
    Whether an answer with *status* is recorded or frees its key.

    Args:
        routed: False where the scope shows no route of the framework's: then a 404 or a 307 is not an outcome.
        handled: False where it is known that no handler began: then nothing is an outcome, under any policy.
    """
    if not handled or not policy.keep(status):
        return "release"
    if policy.keep is unless_transient and (
        status in _BEFORE_THE_HANDLER or (status in NOT_ROUTED and not routed)
    ):
        return "release"
    return "keep"
