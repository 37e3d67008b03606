"""The question that shells put to an engine: one keyed request, or call."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from idempotency._core.policy import Policy
from idempotency._core.types import Fingerprint, StorageKey

__all__ = ["Ask", "Question"]


class Question(Protocol):
    """What an engine needs to know. Read only once the key is known, and the same ever after."""

    @property
    def key(self) -> StorageKey:
        """The name of its record."""

    @property
    def fingerprint(self) -> Fingerprint:
        """What makes it the same request."""

    @property
    def policy(self) -> Policy:
        """What it is promised."""

    @property
    def operation(self) -> str:
        """Its name in events, such as "POST /charges"."""

    @property
    def wait(self) -> float:
        """Seconds it may wait for a running twin."""


class Ask(NamedTuple):
    """A question as a value of its own."""

    key: StorageKey
    fingerprint: Fingerprint
    policy: Policy
    operation: str
    wait: float
