"""The settings of a Redis store, and what follows from them: the WAIT command, and a check of the eviction policy."""

from __future__ import annotations

import logging
import math
import re
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from redis import exceptions as failures

from idempotency._core.errors import StoreUnavailable
from idempotency.stores.redis.records import pack

__all__ = ["OnEviction", "Settings", "judge_eviction", "too_few_acked_replicas", "wait_command"]

OnEviction: TypeAlias = Literal["warn", "refuse"]
"""What to do about a server that may evict live records."""

_log = logging.getLogger("idempotency.stores.redis")


class Settings(NamedTuple):
    """
    The settings of a store, for the code that talks to the server.

    Attributes:
        deadline: Seconds for one call, including connecting.
        replicas: How many replicas must confirm a write before it counts.
        on_eviction: What to do about a server that may evict live records.
    """

    deadline: float
    replicas: int
    on_eviction: OnEviction

    @classmethod
    def checked(cls, deadline: float, replicas: int, on_eviction: OnEviction) -> Settings:
        """
        Checks the settings.

        Raises:
            ValueError: A setting is out of range.
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


_POLICY = re.compile(rb"maxmemory_policy:(\S+)")


def wait_command(settings: Settings) -> bytes:
    """
    The WAIT command: answered when enough replicas have every write of the connection, or after a third of the
    deadline, so that there is time for a second try with the script's text.
    """
    return pack(b"WAIT", b"%d" % settings.replicas, b"%d" % (settings.deadline * 1000 / 3))


def judge_eviction(info: Any, on_eviction: OnEviction) -> bool | None:
    """
    Whether the server may evict records, from its reply to INFO memory; if so, it is logged once for each place.

    None if the server gave no answer; then the next connection asks again. False if the user may not run INFO.

    Raises:
        StoreUnavailable: The server may evict records, and *on_eviction* is "refuse".
    """
    if not isinstance(info, bytes):
        return False if isinstance(info, failures.NoPermissionError) else None
    policy = _POLICY.search(info)
    if policy is None or policy[1] == b"noeviction":
        return False
    advice = (
        f"this Redis may evict live records (maxmemory-policy {policy[1].decode()}), and an evicted claim lets an "
        "operation run twice; set maxmemory-policy to noeviction, or keep the records on a separate server"
    )
    if on_eviction == "refuse":
        raise StoreUnavailable(advice)
    _log.warning("%s", advice)
    return True


def too_few_acked_replicas(acked: int, wanted: int) -> StoreUnavailable:
    """The error for a write that a failover may lose, because too few replicas have it."""
    return StoreUnavailable(
        f"only {acked} of the {wanted} replicas asked for have confirmed the write; bring replicas back, or lower "
        "wait_replicas"
    )
