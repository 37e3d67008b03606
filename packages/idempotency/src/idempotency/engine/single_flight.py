"""
Single flight: of many concurrent duplicates in one process, one leads (it runs, or asks the store) and the others wait.

Followers do not call the store. The leader's outcome is given to all of them. If the leader ends without an outcome,
exactly one follower becomes the leader.
"""

from __future__ import annotations

from typing import Final

from idempotency._core.types import Completed, Fingerprint, StorageKey
from idempotency._runtime.event_loop import Gate, Runtime

__all__ = ["InFlight", "SingleFlight", "Promoted"]


class Promoted:
    """Given to the follower that becomes the leader."""


_PROMOTED: Final = Promoted()


class InFlight:
    """The concurrent duplicates of one key in one event loop."""

    __slots__ = ("fingerprint", "followers", "loop")

    def __init__(self, fingerprint: Fingerprint, loop: object) -> None:
        self.fingerprint: Fingerprint = fingerprint
        self.loop: object = loop
        self.followers: dict[Gate[Completed | Promoted], None] = {}  # in the order they came


class SingleFlight:
    """The keys of one engine that have a leader. A request follows only a leader in its own event loop."""

    def __init__(self) -> None:
        self._by_key: dict[StorageKey, InFlight] = {}

    def find(self, key: StorageKey, fingerprint: Fingerprint, loop: object) -> InFlight | None:
        """The duplicates that a request may join (same fingerprint, same loop), or None."""
        in_flight = self._by_key.get(key)
        if in_flight is None or in_flight.fingerprint != fingerprint or in_flight.loop is not loop:
            return None
        return in_flight

    def lead(self, key: StorageKey, fingerprint: Fingerprint, loop: object) -> InFlight | None:
        """Make the caller the leader of *key*; None if the key has a leader."""
        in_flight = InFlight(fingerprint, loop)
        # One atomic step, because loops in other threads may call this at the same time.
        return in_flight if self._by_key.setdefault(key, in_flight) is in_flight else None

    async def follow(
        self, in_flight: InFlight, key: StorageKey, runtime: Runtime, limit: float
    ) -> Completed | Promoted | None:
        """Wait for the leader's outcome; `Promoted` if the caller now leads, None after *limit* seconds."""
        gate: Gate[Completed | Promoted] = runtime.gate()
        in_flight.followers[gate] = None
        try:
            return await gate.wait(limit)
        except BaseException:
            if gate.value is _PROMOTED:  # promoted and cancelled at once: the next follower leads
                self.hand_over(key, in_flight)
            raise
        finally:
            in_flight.followers.pop(gate, None)  # or a long run would collect the gates of all its followers

    def resolve(self, key: StorageKey, in_flight: InFlight, completed: Completed) -> None:
        """Give the outcome to every follower."""
        del self._by_key[key]
        for gate in in_flight.followers:
            gate.give(completed)

    def hand_over(self, key: StorageKey, in_flight: InFlight) -> None:
        """End the lead without an outcome: the first follower that still waits becomes the leader."""
        if any(gate.give(_PROMOTED) for gate in in_flight.followers):
            return
        del self._by_key[key]

    def __contains__(self, key: StorageKey) -> bool:
        return key in self._by_key

    def __len__(self) -> int:
        return len(self._by_key)
