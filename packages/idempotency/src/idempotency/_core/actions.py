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
    """Ask the store for the claim. Event: its reply, or the StoreError it raised."""


@dataclass(frozen=True, slots=True)
class Await:
    """
    Wait for the concurrent duplicate: *poll* seconds before the store is worth asking again, *limit* at the very most.

    Event: `WaitEnded`.
    """

    poll: float
    limit: float


@dataclass(frozen=True, slots=True)
class Complete:
    """Ask the store to record the outcome. Event: its answer, or the StoreError it raised."""


@dataclass(frozen=True, slots=True)
class Release:
    """Ask the store to forget the claim. Event: its answer, or the StoreError it raised."""


@dataclass(frozen=True, slots=True)
class ReleaseLater:
    """Have the store forget whatever this owner may hold, while the request goes on. Event: None, at once."""


@dataclass(frozen=True, slots=True)
class Renew:
    """Ask the store to push the end of the lease. Event: its answer."""


@dataclass(frozen=True, slots=True)
class GetRecord:
    """Ask the store for the record as it stands (E8). Event: the record, None, or the StoreError it raised."""


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
        waited: Seconds since the request began to wait, in all.
        completed: The duplicate's outcome, where this process recorded it; then the store need not be asked.
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
    """Run the operation unprotected: the store failed with *error* and the policy prefers an answer."""

    error: StoreError


Verdict: TypeAlias = Execute | Replay | Refuse | Bypass


# Endings: what became of a run's record.


@dataclass(frozen=True, slots=True)
class Recorded:
    """Done: the record is what the caller presented."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """The claim was lost and its successor is done: its record is the answer (E8)."""

    completed: Completed


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The claim was lost and the record is gone or another's: our own answer is the best there is (E8)."""


@dataclass(frozen=True, slots=True)
class Unrecorded:
    """The store did not confirm: our own answer goes out and the lease decides about a retry (E8)."""

    error: StoreError


RECORDED = Recorded()

Ending: TypeAlias = Recorded | Superseded | Forgotten | Unrecorded | Refuse
