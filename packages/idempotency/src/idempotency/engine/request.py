"""Defines what an engine is asked to claim: one keyed request, or one call of a decorated function."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from idempotency._core.policy import Policy
from idempotency._core.types import Fingerprint, StorageKey

__all__ = ["Ask", "OperationRequest"]


class OperationRequest(Protocol):
    """One operation that a caller wants claimed. An engine may read each attribute many times; none changes."""

    @property
    def key(self) -> StorageKey:
        """The name of its record in the store."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Equal for a repeat of the request, different for another one under the same key."""

    @property
    def policy(self) -> Policy:
        """The policy of the route: limits, what is kept, and what a failure does."""

    @property
    def operation(self) -> str:
        """Its name in events, such as "POST /charges"."""

    @property
    def wait(self) -> float:
        """Seconds to wait for a concurrent duplicate before `InProgress`."""


class Ask(NamedTuple):
    """An `OperationRequest` that is only a value."""

    key: StorageKey
    fingerprint: Fingerprint
    policy: Policy
    operation: str
    wait: float
