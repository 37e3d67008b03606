"""Computes delays: how long to wait for a duplicate, when to renew a lease, when a client should retry."""

from __future__ import annotations

from math import ceil, inf

__all__ = ["COMPLETE_RETRIES", "RELEASE_RETRIES", "poll_delay", "renew_interval", "retry_after"]

COMPLETE_RETRIES = (0.05, 0.25)
"""Seconds to pause before each repeat of `complete` (E8): a client is waiting."""

RELEASE_RETRIES = (0.25, 1.0, 4.0)
"""Seconds to pause before each repeat of a release that nobody waits for."""

_FIRST_POLL, _LAST_POLL = 0.02, 1.0


def poll_delay(polls: int, random: float, lease_left: float = inf) -> float:
    """
    Seconds before the store is asked again: doubling from 20 ms to 1 s, the upper half of each at random.

    Never later than 30 ms behind the end of the lease: a live owner has renewed it by then, a dead one is succeeded.

    Args:
        polls: How often it was asked already, from 0 on.
        random: Uniform in [0, 1), so that many waiters do not ask as one.
        lease_left: Seconds that the duplicate's lease still had when the store was asked.

    >>> poll_delay(0, 0.0), poll_delay(0, 0.5), poll_delay(40, 0.0)
    (0.01, 0.015, 0.5)
    >>> poll_delay(40, 0.5, lease_left=0.25)
    0.27
    """
    longest = min(_LAST_POLL, _FIRST_POLL * 2.0 ** min(polls, 10))
    return min(longest * (0.5 + random / 2), lease_left + _FIRST_POLL * (0.5 + random))


def renew_interval(lease: float) -> float:
    """Seconds between renewals: two may fail before the lease lapses (E3)."""
    return lease / 3


def retry_after(lease_left: float, random: float) -> int:
    """
    Whole seconds for Retry-After beside a running duplicate: 1 to 4, spread at random, no later than the lease's end.

    >>> retry_after(0.2, 0.9), retry_after(30.0, 0.0), retry_after(30.0, 0.99)
    (1, 1, 4)
    """
    return max(1, min(ceil(lease_left), 1 + int(random * 4)))
