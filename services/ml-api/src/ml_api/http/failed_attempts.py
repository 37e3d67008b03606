"""Delays failed authentications: after some failures of one address, each further answer waits, to prevent guessing."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address, ip_address

__all__ = ["FailedAttempts"]


class FailedAttempts:
    """
    Counts failed authentications by client address and delays them once there are too many.

    Each address may fail *burst* times at once, and then *per_minute* times per minute. The answer to each further
    failure is delayed by *delay* seconds. While *max_delayed* answers of this process are delayed, an address that has
    used up its failures is `blocked`: refuse its requests without checking their keys. So beyond the bursts, a process
    checks at most *max_delayed* guesses per *delay* seconds. A valid key is never delayed.

    Args:
        max_addresses: How many addresses to remember; the one that failed longest ago is forgotten first.
        clock: Returns monotonic seconds.
        sleep: Waits for a number of seconds.

    IPv6 addresses count by their /64 network, because usually all of it belongs to one customer.
    """

    def __init__(
        self,
        *,
        burst: int = 20,
        per_minute: int = 20,
        delay: float = 1.0,
        max_delayed: int = 64,
        max_addresses: int = 4096,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._burst, self._per_second, self._delay = float(burst), per_minute / 60, delay
        self._max_delayed, self._max_addresses = max_delayed, max_addresses
        self._clock, self._sleep = clock, sleep
        self._delayed = 0
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # failures left, time of that count

    def blocked(self, address: str) -> bool:
        """Whether a request from *address* must be refused without checking its key."""
        return self._delayed >= self._max_delayed and self._remaining(_network(address)) < 1

    async def failed(self, address: str) -> bool:
        """Count a failure of *address*, and wait if it has too many; return whether it waited."""
        network = _network(address)
        left = self._remaining(network)
        self._left[network] = max(left - 1, 0.0), self._clock()
        self._left.move_to_end(network)
        if len(self._left) > self._max_addresses:
            self._left.popitem(last=False)
        if left >= 1:
            return False
        self._delayed += 1
        try:
            # Wait also if the client has disconnected: else a guesser could disconnect to avoid the wait.
            await self._sleep(self._delay)
        finally:
            self._delayed -= 1
        return True

    def _remaining(self, network: str) -> float:
        left, counted = self._left.get(network, (self._burst, 0.0))
        return min(self._burst, left + (self._clock() - counted) * self._per_second)


def _network(address: str) -> str:
    try:
        parsed = ip_address(address)
    except ValueError:
        return address  # not an IP address, for example with a Unix socket
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return parsed.exploded[:19]
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)
