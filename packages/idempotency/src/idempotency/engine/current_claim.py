"""The claim under which the current code runs, for handlers and for whatever they call."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from idempotency._core.fingerprint import digest
from idempotency._core.types import Claim

__all__ = ["CurrentClaim", "Frame", "active", "current_claim"]


class Frame(Protocol):
    """The run around the current code, as a shell keeps it."""

    @property
    def claim(self) -> Claim:
        """The claim that it runs under."""

    @property
    def retention(self) -> float:
        """Seconds that its record is kept."""

    def outcome(self, answer: Any) -> bytes:
        """*answer* as the shell would record it."""


@dataclass(frozen=True, slots=True)
class CurrentClaim:
    """What a running handler may know of its claim, and hand on."""

    claim: Claim
    _frame: Frame = field(repr=False, compare=False)

    @property
    def attempt(self) -> int:
        """1 for the first run; more where an earlier one was abandoned: its effect may be there already."""
        return self.claim.attempt

    @property
    def fence(self) -> int:
        """Strictly increasing per key: a resource that refuses smaller numbers is safe from a stalled owner (R9)."""
        return self.claim.fence

    def derive(self, name: str) -> str:
        """
        An idempotency key for a call that this operation makes: the same on every attempt, another for every *name*.

        Returns:
            32 hexadecimal digits: 128 bits of a SHA-256 over the storage key and *name*.
        """
        return digest(b"derive", self.claim.key.encode(), name.encode()).hex()[:32]

    # For `complete_in` of a store, which commits the record in the transaction of the effect itself.

    @property
    def retention(self) -> float:
        """Seconds that the record is kept, as the policy has it."""
        return self._frame.retention

    def outcome(self, answer: Any) -> bytes:
        """
        *answer* as it would be recorded if it were returned now, by the same policy or codec. It must then be returned.

        Args:
            answer: Under the middleware an `idempotency.Response`; under the decorator the function's value. One that
                cannot be kept is recorded as done (E2), as ever.
        Raises:
            TypeError: *answer* is no `Response`, under the middleware.
        """
        return self._frame.outcome(answer)


active: ContextVar[Frame | None] = ContextVar("idempotency_claim", default=None)


def current_claim() -> CurrentClaim | None:
    """The claim this code runs under, or None where it runs unprotected (no key, or no middleware or decorator)."""
    frame = active.get()
    return None if frame is None else CurrentClaim(frame.claim, frame)
