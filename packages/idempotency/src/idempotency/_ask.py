"""The question that shells put to an engine."""

from __future__ import annotations

from typing import NamedTuple

from idempotency._core.policy import Policy
from idempotency._core.types import Fingerprint, StorageKey

__all__ = ["Ask"]


class Ask(NamedTuple):
    """
    One keyed request, as the engine sees it.

    Attributes:
        operation: Its name in events, such as "POST /charges".
        wait: Seconds it may wait for a running twin.
    """

    key: StorageKey
    fingerprint: Fingerprint
    policy: Policy
    operation: str
    wait: float
