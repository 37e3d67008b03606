"""Defines the messages between engine and protocol: requests, results, and how an operation begins and ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from idempotency._core.errors import IdempotencyError, StoreError
from idempotency._core.types import Acquired, Claim, Completed, Record, Running

__all__ = [
    "ACQUIRE",
    "COMPLETE",
    "GET_RECORD",
    "RECORDED",
    "RELEASE",
    "RELEASE_LATER",
    "RENEW",
    "Acquire",
    "Action",
    "Await",
    "Bypass",
    "Complete",
    "Ending",
    "Event",
    "Execute",
    "Forgotten",
    "GetRecord",
    "Recorded",
    "Refuse",
    "Release",
    "ReleaseLater",
    "Renew",
    "Replay",
    "Sleep",
    "Superseded",
    "Unrecorded",
    "Verdict",
    "WaitEnded",
]


# Actions: what the engine is asked to do.


@dataclass(frozen=True, slots=True)
class Acquire:
    """Acquire the claim. Event: the store's reply, or the StoreError it raised."""


@dataclass(frozen=True, slots=True)
class Await:
    """
    Wait for the concurrent duplicate.

    Event: `WaitEnded`.

    Attributes:
        poll: Seconds until the store should be asked again.
        limit: The longest wait, in seconds.
    """

    poll: float
    limit: float


@dataclass(frozen=True, slots=True)
class Complete:
    """Record the outcome. Event: the store's answer, or the StoreError it raised."""


@dataclass(frozen=True, slots=True)
class Release:
    """Release the claim. Event: the store's answer, or the StoreError it raised."""


@dataclass(frozen=True, slots=True)
class ReleaseLater:
    """Release in the background whatever this owner may hold; the request goes on. Event: None, at once."""


@dataclass(frozen=True, slots=True)
class Renew:
    """Renew the lease. Event: the store's answer."""


@dataclass(frozen=True, slots=True)
class GetRecord:
    """Read the current record (E8). Event: the record, None, or the StoreError the store raised."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Let *seconds* pass. Event: None."""

    seconds: float


ACQUIRE, COMPLETE, RELEASE, RELEASE_LATER, RENEW, GET_RECORD = (
    Acquire(),
    Complete(),
    Release(),
    ReleaseLater(),
    Renew(),
    GetRecord(),
)

Action: TypeAlias = Acquire | Await | Complete | Release | ReleaseLater | Renew | GetRecord | Sleep


# Events beside the store's own replies.


@dataclass(frozen=True, slots=True)
class WaitEnded:
    """
    The wait is over.

    Attributes:
        waited: Seconds since the request began to wait, over all its waits.
        completed: The duplicate's outcome, if this process recorded it: then the store need not be asked.
    """

    waited: float
    completed: Completed | None = None


Event: TypeAlias = Acquired | Running | Completed | WaitEnded | Record | Exception | bool | None


# Verdicts: how an operation begins.


class Execute(NamedTuple):
    """Run the operation under *claim*, after *waited* seconds."""

    claim: Claim
    waited: float = 0.0


class Replay(NamedTuple):
    """Answer with the recorded outcome, after *waited* seconds; run nothing."""

    completed: Completed
    waited: float = 0.0


class Refuse(NamedTuple):
    """Answer with the error's problem document; run nothing."""

    error: IdempotencyError


@dataclass(frozen=True, slots=True)
class Bypass:
    """Run the operation unprotected: the store failed with *error*, and the policy says `on_store_error="bypass"`."""

    error: StoreError


Verdict: TypeAlias = Execute | Replay | Refuse | Bypass


# Endings: what happened to the record of a run.


@dataclass(frozen=True, slots=True)
class Recorded:
    """The store recorded the caller's outcome."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """The claim was lost to a takeover, and that run is done: its record is the answer (E8)."""

    completed: Completed


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The claim was lost, and the record is gone or is another operation's: this run's own answer is sent (E8)."""


@dataclass(frozen=True, slots=True)
class Unrecorded:
    """The store did not confirm the record: this run's own answer is sent, and a retry depends on the lease (E8)."""

    error: StoreError


RECORDED = Recorded()

Ending: TypeAlias = Recorded | Superseded | Forgotten | Unrecorded | Refuse
