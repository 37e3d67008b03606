"""The price, and the five set-ups that the demo compares: no protection, and the promises in docs/concepts.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from idempotency._core.policy import Policy

__all__ = ["AFTER_COMMIT", "BEFORE_COMMIT", "BEGUN", "LEDGER_SCHEMA", "PRICE_CENTS", "SETUPS", "Setup"]

BEGUN, BEFORE_COMMIT, AFTER_COMMIT = "begun", "before-commit", "after-commit"
"""The places where a request can ask its worker to stop."""

PRICE_CENTS: Final = 4_900
LEDGER_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS charge (reference TEXT PRIMARY KEY, customer_order TEXT NOT NULL, cents INTEGER NOT NULL)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """
    One way to run the payment API.

    Attributes:
        policy: Makes the policy of the middleware; None: run without the middleware.
        derives_key: Whether the charge has a key derived from the claim, which the ledger accepts only once.
        in_transaction: Whether charge and record are committed together (`complete_in`).
        allowed_duplicates: How many extra charges the promise allows when one worker dies after its charge.
    """

    name: str
    summary: str
    policy: Callable[..., Policy] | None
    derives_key: bool = False
    in_transaction: bool = False
    allowed_duplicates: int = 0


SETUPS: Final = (
    Setup(
        name="no protection",
        summary="a retry is a new request",
        policy=None,
        allowed_duplicates=1_000,
    ),
    Setup(
        name="at least once",
        summary="a worker that dies after the charge may add one",
        policy=Policy.at_least_once,
        allowed_duplicates=1,
    ),
    Setup(
        name="at least once + derived key",
        summary="the ledger refuses the same derived key twice",
        policy=Policy.at_least_once,
        derives_key=True,
    ),
    Setup(
        name="at most once",
        summary="never a second run; after a crash the client is told that the outcome is unknown",
        policy=Policy.at_most_once,
    ),
    Setup(
        name="effectively once",
        summary="charge and record are one transaction",
        policy=Policy.at_least_once,
        in_transaction=True,
    ),
)
