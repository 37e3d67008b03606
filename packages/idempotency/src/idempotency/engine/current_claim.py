"""
Tracks which run the current code belongs to: the claim that it may read, and the calls that join the run.

Tasks, threads, callbacks and copied contexts inherit context variables and may outlive the run that they were made in.
So a `Frame` represents the run and knows when it is over: from then on, code that inherited the frame has no claim and
cannot join the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from idempotency._core.errors import RunEnded
from idempotency._core.fingerprint import digest
from idempotency._core.types import Claim, StorageKey, key_id
from idempotency._runtime.fork import forget_in_child

__all__ = [
    "CurrentClaim",
    "Frame",
    "active",
    "covering",
    "current_claim",
    "encloses",
    "inside",
    "joined",
    "leave",
    "outside",
    "without",
]


class OutcomeEncoder(Protocol):
    """Encodes the outcome of a run: the middleware's recorder, or a decorated function's codec."""

    @property
    def retention(self) -> float:
        """Seconds that the record is kept."""

    def outcome(self, answer: Any, claim: Claim) -> bytes:
        """*answer* as it would be recorded under *claim*."""


class Frame:
    """
    One run, as the code inside it sees it.

    Args:
        claim: The claim of the run.
        encoder: Encodes the outcome of the run.
        enclosing: The run that this one began in, if any.
    """

    __slots__ = ("_born", "_encoder", "claim", "enclosing")

    def __init__(self, claim: Claim, encoder: OutcomeEncoder, enclosing: Frame | None) -> None:
        self.claim: Claim = claim
        self.enclosing: Frame | None = enclosing
        self._encoder: OutcomeEncoder | None = encoder
        self._born = _forks.count
        if enclosing is not None:
            # Skip frames that are over, so that a chain of tasks, each started by the one before, does not keep them.
            self.enclosing = enclosing = _running(enclosing)
            if enclosing is not None:
                enclosing.enclosing = _running(enclosing.enclosing)

    @property
    def over(self) -> bool:
        """Whether the run has ended. In a forked child the parent's runs have, since it cannot see them end."""
        return self._encoder is None or self._born != _forks.count

    def end(self) -> None:
        """End the run, after the application or the function has returned; nothing can join it from now on."""
        self._encoder = None

    @property
    def retention(self) -> float:
        """Seconds that the record of the run is kept."""
        return self.encoder_for("retention").retention

    def outcome(self, answer: Any) -> bytes:
        """*answer* as it would be recorded."""
        return self.encoder_for("outcome()").outcome(answer, self.claim)

    def require_running(self, wanted: str) -> None:
        """
        Check that the run is not over; *wanted* names what the caller wants, for the message.

        Raises:
            RunEnded: The run is over.
        """
        if self.over:
            raise RunEnded(key_id=key_id(self.claim.key), wanted=wanted)

    def encoder_for(self, wanted: str) -> OutcomeEncoder:
        """
        The encoder of the run's outcome; *wanted* names what the caller wants, for the message.

        Raises:
            RunEnded: The run is over.
        """
        encoder = self._encoder
        if encoder is None or self.over:
            raise RunEnded(key_id=key_id(self.claim.key), wanted=wanted)
        return encoder


class _JoinedFrame(Frame):
    """A call that joined an enclosing run, not the innermost one: it runs under the claim of that enclosing run."""

    __slots__ = ("_of",)

    def __init__(self, of: Frame, enclosing: Frame | None) -> None:
        super().__init__(of.claim, of.encoder_for("joining"), enclosing)
        self._of = of

    @property
    def over(self) -> bool:
        return super().over or self._of.over


@dataclass(frozen=True, slots=True, repr=False)
class CurrentClaim:
    """
    The claim as the running handler sees it: its attempt and fence, and keys derived from its key.

    It is valid only during its run: afterwards `claim`, `derive`, `outcome` and `retention` raise `RunEnded`. If you
    need a derived key later, call `derive` during the run and keep the string.
    """

    _claim: Claim
    _frame: Frame = field(compare=False)

    @property
    def claim(self) -> Claim:
        """
        The claim itself, for a store's `complete_in`.

        Raises:
            RunEnded: The run is over.
        """
        self._frame.require_running("claim")
        return self._claim

    @property
    def attempt(self) -> int:
        """1 for the first run. More if an earlier run was abandoned: that run may already have had its effect."""
        return self._claim.attempt

    @property
    def fence(self) -> int:
        """Strictly increases per key. A resource that refuses smaller numbers is protected from a stalled run (R9)."""
        return self._claim.fence

    def derive(self, name: str) -> str:
        """
        An idempotency key for a call to another service: the same in every attempt, different for each *name*.

        Returns:
            32 hexadecimal digits: 128 bits of a SHA-256 over the storage key and *name*.
        Raises:
            RunEnded: The run is over.
        """
        self._frame.require_running("derive()")
        return digest(b"derive", self._claim.key.encode(), name.encode()).hex()[:32]

    # For a store's `complete_in`, which commits the record in the same transaction as the effect.

    @property
    def retention(self) -> float:
        """
        Seconds that the record is kept, from the policy.

        Raises:
            RunEnded: The run is over.
        """
        return self._frame.retention

    def outcome(self, answer: Any) -> bytes:
        """
        *answer* encoded as the outcome that would be recorded if it were returned now. Return the same answer then.

        Args:
            answer: Under the middleware an `idempotency.Response`; under the decorator the function's value. An answer
                that cannot be kept is encoded as done and not kept (E2).
        Raises:
            TypeError: Under the middleware: *answer* is not a `Response`.
            RunEnded: The run is over.
        """
        return self._frame.outcome(answer)

    def __repr__(self) -> str:
        """Leaves out the key and the owner, which must not appear in logs."""
        return f"CurrentClaim({key_id(self._claim.key)}, attempt={self.attempt}, fence={self.fence})"


active: ContextVar[Frame | None] = ContextVar("idempotency_claim", default=None)
"""The innermost run that this context belongs to; the run may be over."""


def current_claim() -> CurrentClaim | None:
    """
    The claim that this code runs under. None if it runs unprotected: there is no key, no middleware or decorator, or
    this is a task, thread or callback that has outlived its run.
    """
    frame = active.get()
    return None if frame is None or frame.over else CurrentClaim(frame.claim, frame)


def covering(key: StorageKey, innermost: Frame | None) -> Frame | None:
    """The run that a call under *key* joins (E10): *innermost* or a run that encloses it; None if there is none."""
    frame = innermost
    while frame is not None:
        if frame.claim.key == key and not frame.over:
            return frame
        frame = frame.enclosing
    return None


def encloses(frame: Frame, innermost: Frame | None) -> bool:
    """Whether *frame* is *innermost*, or encloses it."""
    while innermost is not None:
        if innermost is frame:
            return True
        innermost = innermost.enclosing
    return False


def without(frame: Frame, runs: tuple[Frame, ...]) -> tuple[Frame, ...]:
    """*runs* but for *frame*, which need not be the last: a late claim may outlast the run that it was made in."""
    return runs[:-1] if runs and runs[-1] is frame else tuple(run for run in runs if run is not frame)


def leave(frame: Frame, outer: Frame | None) -> None:
    """
    Leave the run of *frame*: this context is in *outer* again, unless it is in another run that still lasts.

    Without a token: a late claim may have been made in another context, or in a run that was over before it.
    """
    innermost = active.get()
    if innermost is frame or (innermost is not None and innermost.over):
        active.set(_running(outer))


@contextmanager
def inside(frame: Frame) -> Iterator[None]:
    """Makes the block the run of *frame*; the run ends with the block."""
    token = active.set(frame)
    try:
        yield
    finally:
        frame.end()
        active.reset(token)


@contextmanager
def joined(frame: Frame) -> Iterator[None]:
    """Makes the block part of the enclosing run *frame*, even if other runs began in between."""
    innermost = active.get()
    if innermost is frame:
        yield
    else:
        with inside(_JoinedFrame(frame, innermost)):
            yield


@contextmanager
def outside() -> Iterator[None]:
    """Makes the block part of no run, whatever context it inherited."""
    token = active.set(None)
    try:
        yield
    finally:
        active.reset(token)


def _running(frame: Frame | None) -> Frame | None:
    """*frame*, or the nearest enclosing frame that is not over; None if all are."""
    while frame is not None and frame.over:
        frame = frame.enclosing
    return frame


class _Forks:
    """Counts the forks that led to this process, so that a child does not take over the runs of its parent."""

    def __init__(self) -> None:
        self.count = 0

    def add(self) -> None:
        self.count += 1


_forks = _Forks()
forget_in_child(_forks, _Forks.add)
