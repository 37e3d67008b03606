"""The claim under which the current code runs, for handlers and for whatever they call."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from idempotency._core.fingerprint import digest
from idempotency._core.types import Claim

__all__ = ["CurrentClaim", "active", "current_claim"]


@dataclass(frozen=True, slots=True)
class CurrentClaim:
    """What a running handler may know of its claim, and hand on."""

    claim: Claim

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


active: ContextVar[Claim | None] = ContextVar("idempotency_claim", default=None)


def current_claim() -> CurrentClaim | None:
    """The claim this code runs under, or None where it runs unprotected (no key, or no middleware or decorator)."""
    claim = active.get()
    return None if claim is None else CurrentClaim(claim)
