"""Computes delays: when to poll for a duplicate, when to renew a lease, when a client should retry."""

from __future__ import annotations

from math import ceil, inf

__all__ = ["COMPLETE_RETRIES", "RELEASE_RETRIES", "poll_delay", "renew_interval", "retry_after"]

COMPLETE_RETRIES = (0.05, 0.25)
"""Seconds before each retry of `complete` (E8); short, because a client is waiting."""

RELEASE_RETRIES = (0.25, 1.0, 4.0)
"""Seconds before each retry of a release in the background."""

_FIRST_POLL, _LAST_POLL = 0.02, 1.0


def poll_delay(polls: int, random: float, lease_left: float = inf) -> float:
    """
    Seconds until the next poll of the store: a random time from the upper half of a limit, which doubles from 20 ms
    to 1 s.

    Never later than 30 ms after the end of the lease: by then a live owner has renewed it, and a dead owner's key can
    be taken over.

    Args:
        polls: How many polls were made, from 0 on.
        random: Uniform in [0, 1), so that many waiters do not poll at once.
        lease_left: Seconds left of the duplicate's lease at the last poll.

    >>> poll_delay(0, 0.0), poll_delay(0, 0.5), poll_delay(40, 0.0)
    (0.01, 0.015, 0.5)
    >>> poll_delay(40, 0.5, lease_left=0.25)
    0.27
    """
    longest = min(_LAST_POLL, _FIRST_POLL * 2.0 ** min(polls, 10))
    return min(longest * (0.5 + random / 2), lease_left + _FIRST_POLL * (0.5 + random))


def renew_interval(lease: float) -> float:
    """Seconds between renewals: two in a row may fail before the lease lapses (E3)."""
    return lease / 3


def retry_after(lease_left: float, random: float) -> int:
    """
    Retry-After while a duplicate runs: 1 to 4 whole seconds, at random, at most the lease's rest (rounded up).

    >>> retry_after(0.2, 0.9), retry_after(30.0, 0.0), retry_after(30.0, 0.99)
    (1, 1, 4)
    """
    return max(1, min(ceil(lease_left), 1 + int(random * 4)))
