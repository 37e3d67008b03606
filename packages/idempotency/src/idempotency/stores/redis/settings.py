"""Holds a Redis store's settings, and checks the server's before the store trusts it with a claim."""

from __future__ import annotations

import logging
import math
import re
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from redis import exceptions as failures

from idempotency._core.errors import StoreUnavailable
from idempotency.stores.redis.records import pack

__all__ = ["Answer", "OnEviction", "Settings", "judge_eviction", "too_few_acked_replicas", "wait_command"]

OnEviction: TypeAlias = Literal["warn", "refuse"]
"""What to do about a server that may evict live records."""

_log = logging.getLogger("idempotency.stores.redis")


class Settings(NamedTuple):
    """
    The settings of a store, for the code that talks to the server.

    Attributes:
        deadline: Seconds for one exchange with the server, connecting included.
        replicas: How many replicas must have a write before it counts.
        on_eviction: What to do about a server that may evict live records.
    """

    deadline: float
    replicas: int
    on_eviction: OnEviction

    @classmethod
    def checked(cls, deadline: float, replicas: int, on_eviction: OnEviction) -> Settings:
        """
        Settings that make sense.

        Raises:
            ValueError: They do not.
        """
        if not 0 < deadline < math.inf:
            raise ValueError(f"deadline must be a positive number of seconds, not {deadline}")
        if replicas < 0:
            raise ValueError(f"wait_replicas must be 0 or more, not {replicas}")
        if on_eviction not in get_args(OnEviction):
            raise ValueError(
                f"on_eviction must be one of {', '.join(get_args(OnEviction))}, not {on_eviction!r}"
            )
        return cls(deadline, replicas, on_eviction)


class Answer(NamedTuple):
    """
    A script's reply.

    Attributes:
        acked_replicas: How many replicas had every write of this connection when it was read; 0 if none is required.
    """

    reply: Any
    acked_replicas: int


_POLICY = re.compile(rb"maxmemory_policy:(\S+)")


def wait_command(settings: Settings) -> bytes:
    """
    Asks how many replicas have every write of this connection; answered once enough do, or at a third of the deadline.

    A third, so that a second try with the script's whole text still fits.
    """
    return pack(b"WAIT", b"%d" % settings.replicas, b"%d" % (settings.deadline * 1000 / 3))


def judge_eviction(info: Any, on_eviction: OnEviction) -> bool | None:
    """
    Whether the server may evict records, from its reply to INFO memory; says so, once for each place.

    None where it would not say just now; the next connection asks again. A user who never may ask is told nothing.

    Raises:
        StoreUnavailable: It may, and *on_eviction* is "refuse".
    """
    if not isinstance(info, bytes):
        return False if isinstance(info, failures.NoPermissionError) else None
    policy = _POLICY.search(info)
    if policy is None or policy[1] == b"noeviction":
        return False
    advice = (
        f"this Redis may evict live records (maxmemory-policy {policy[1].decode()}), and an evicted claim lets an "
        "operation run twice; set maxmemory-policy to noeviction, or keep the records on a server of their own"
    )
    if on_eviction == "refuse":
        raise StoreUnavailable(advice)
    _log.warning("%s", advice)
    return True


def too_few_acked_replicas(acked: int, wanted: int) -> StoreUnavailable:
    """A write that too few replicas have may be lost in a failover: it does not count."""
    return StoreUnavailable(
        f"only {acked} of the {wanted} replicas asked for have confirmed the write; bring replicas back, or lower "
        "wait_replicas"
    )
