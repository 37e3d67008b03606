"""Defines the operation that an engine claims: one keyed request, or one call of a decorated function."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from idempotency._core.policy import Policy
from idempotency._core.types import Fingerprint, StorageKey

__all__ = ["Ask", "OperationRequest"]


class OperationRequest(Protocol):
    """One operation to claim. An engine may read each attribute many times, so none may change."""

    @property
    def key(self) -> StorageKey:
        """The name of its record in the store."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Equal for a retry of the request, different for another request under the same key."""

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
    """An `OperationRequest` as a plain value."""

    key: StorageKey
    fingerprint: Fingerprint
    policy: Policy
    operation: str
    wait: float
