"""
Tracks which run the current code is part of: what it may read of its claim, and which calls join the run.

Context variables are inherited by tasks, threads, callbacks and copied contexts, which may outlive the run that they
were made in. So a run is represented by a `Frame` that knows when the run is over: from then on nobody who inherited
it has a claim, or is covered by it.
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
    "outside",
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
    One run, for the code inside it.

    Args:
        claim: What the run holds its key by.
        encoder: What will make its record.
        enclosing: The run that this one was begun in.
    """

    __slots__ = ("_born", "_encoder", "claim", "enclosing")

    def __init__(self, claim: Claim, encoder: OutcomeEncoder, enclosing: Frame | None) -> None:
        self.claim: Claim = claim
        self.enclosing: Frame | None = enclosing
        self._encoder: OutcomeEncoder | None = encoder
        self._born = _forks.count
        if enclosing is not None:
            # Frames that are over are left out: a chain of tasks, each begun by the one before, keeps none of them.
            self.enclosing = enclosing = _running(enclosing)
            if enclosing is not None:
                enclosing.enclosing = _running(enclosing.enclosing)

    @property
    def over(self) -> bool:
        """Whether the run has ended; in a forked child it has, since the parent's end is not seen there."""
        return self._encoder is None or self._born != _forks.count

    def end(self) -> None:
        """The application, or the function, has returned: nothing is part of this run from now on."""
        self._encoder = None

    @property
    def retention(self) -> float:
        """Seconds that its record is kept."""
        return self.encoder_for("retention").retention

    def outcome(self, answer: Any) -> bytes:
        """*answer* as it would be recorded."""
        return self.encoder_for("outcome()").outcome(answer, self.claim)

    def require_running(self, wanted: str) -> None:
        """
        Refuse to speak for a run that is over.

        Raises:
            RunEnded: The run is over.
        """
        if self.over:
            raise RunEnded(key_id=key_id(self.claim.key), wanted=wanted)

    def encoder_for(self, wanted: str) -> OutcomeEncoder:
        """
        The encoder of the run's outcome, as long as the run is not recorded.

        Raises:
            RunEnded: The run is over.
        """
        encoder = self._encoder
        if encoder is None or self.over:
            raise RunEnded(key_id=key_id(self.claim.key), wanted=wanted)
        return encoder


class _JoinedFrame(Frame):
    """A call that joined an enclosing run which is not the innermost one: it runs under that run's claim."""

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
    The claim as the running handler sees it: its key, attempt and fence, and keys derived from it.

    It is valid only while its run lasts: afterwards `claim`, `derive`, `outcome` and `retention` raise `RunEnded`. If
    you need a derived key later, call `derive` during the run and keep the string.
    """

    _claim: Claim
    _frame: Frame = field(compare=False)

    @property
    def claim(self) -> Claim:
        """
        The claim itself, for `complete_in` of a store.

        Raises:
            RunEnded: The run is over.
        """
        self._frame.require_running("claim")
        return self._claim

    @property
    def attempt(self) -> int:
        """1 for the first run. More if an earlier run was abandoned, which may have made the effect already."""
        return self._claim.attempt

    @property
    def fence(self) -> int:
        """Strictly increasing per key. A resource that refuses smaller numbers is protected from a stalled run (R9)."""
        return self._claim.fence

    def derive(self, name: str) -> str:
        """
        An idempotency key for a call to another service: the same on every attempt, a different one for each *name*.

        Returns:
            32 hexadecimal digits: 128 bits of a SHA-256 over the storage key and *name*.
        Raises:
            RunEnded: The run is over, so that the key would be that of another operation.
        """
        self._frame.require_running("derive()")
        return digest(b"derive", self._claim.key.encode(), name.encode()).hex()[:32]

    # For `complete_in` of a store, which commits the record in the transaction of the effect itself.

    @property
    def retention(self) -> float:
        """
        Seconds that the record is kept, as the policy has it.

        Raises:
            RunEnded: The run is over.
        """
        return self._frame.retention

    def outcome(self, answer: Any) -> bytes:
        """
        *answer* as it would be recorded if it were returned now, by the same policy or codec. It must then be returned.

        Args:
            answer: Under the middleware an `idempotency.Response`; under the decorator the function's value. One that
                cannot be kept is recorded as done (E2), as ever.
        Raises:
            TypeError: *answer* is no `Response`, under the middleware.
            RunEnded: The run is over.
        """
        return self._frame.outcome(answer)

    def __repr__(self) -> str:
        """Without the key and the owner's token, which no log may show."""
        return f"CurrentClaim({key_id(self._claim.key)}, attempt={self.attempt}, fence={self.fence})"


active: ContextVar[Frame | None] = ContextVar("idempotency_claim", default=None)
"""The innermost run that this context was made in; it may be over."""


def current_claim() -> CurrentClaim | None:
    """
    The claim this code runs under, or None where it runs unprotected: no key, no middleware or decorator, or a task,
    thread or callback that has outlived the run it was started in.
    """
    frame = active.get()
    return None if frame is None or frame.over else CurrentClaim(frame.claim, frame)


def covering(key: StorageKey, innermost: Frame | None) -> Frame | None:
    """The run, *innermost* or one that encloses it, which a call under *key* is part of and joins (E10)."""
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


@contextmanager
def inside(frame: Frame) -> Iterator[None]:
    """The code in this block is the run of *frame*, which is over when the block is left."""
    token = active.set(frame)
    try:
        yield
    finally:
        frame.end()
        active.reset(token)


@contextmanager
def joined(frame: Frame) -> Iterator[None]:
    """The code in this block is part of *frame*, which encloses it, whatever runs were begun in between."""
    innermost = active.get()
    if innermost is frame:
        yield
    else:
        with inside(_JoinedFrame(frame, innermost)):
            yield


@contextmanager
def outside() -> Iterator[None]:
    """The code in this block is part of no run, whatever context it inherited."""
    token = active.set(None)
    try:
        yield
    finally:
        active.reset(token)


def _running(frame: Frame | None) -> Frame | None:
    """*frame*, or the nearest enclosing one that is not over."""
    while frame is not None and frame.over:
        frame = frame.enclosing
    return frame


class _Forks:
    """Counts the forks that led to this process: a child must not take its parent's runs for its own."""

    count = 0

    def add(self) -> None:
        self.count += 1


_forks = _Forks()
forget_in_child(_forks, _Forks.add)
