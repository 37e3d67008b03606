"""
Single flight: of many twins in one process, one leads (it runs, or watches the store) and the others follow it.

Followers ask the store nothing. What the leader learns is handed to all of them; where it leaves without an answer,
exactly one follower takes its place.
"""

from __future__ import annotations

from typing import Final

from idempotency._backends.base import Gate, Runtime
from idempotency._core.types import Completed, Fingerprint, StorageKey

__all__ = ["Flight", "Flights", "Promoted"]


class Promoted:
    """Given to the follower that is to lead."""


_PROMOTED: Final = Promoted()


class Flight:
    """The twins of one key in one loop."""

    __slots__ = ("fingerprint", "followers", "loop")

    def __init__(self, fingerprint: Fingerprint, loop: object) -> None:
        self.fingerprint = fingerprint
        self.loop = loop
        self.followers: dict[Gate[Completed | Promoted], None] = {}  # in the order they came


class Flights:
    """All flights of one engine; a request joins only a flight whose leader is in its own loop."""

    def __init__(self) -> None:
        self._by_key: dict[StorageKey, Flight] = {}

    def find(self, key: StorageKey, fingerprint: Fingerprint, loop: object) -> Flight | None:
        """The flight that a request may follow."""
        flight = self._by_key.get(key)
        if flight is None or flight.fingerprint != fingerprint or flight.loop is not loop:
            return None
        return flight

    def lead(self, key: StorageKey, fingerprint: Fingerprint, loop: object) -> Flight | None:
        """A new flight, or None where the key has a leader already."""
        flight = Flight(fingerprint, loop)
        # One step: loops of other threads may ask at the same time.
        return flight if self._by_key.setdefault(key, flight) is flight else None

    async def follow(
        self, flight: Flight, key: StorageKey, runtime: Runtime, limit: float
    ) -> Completed | Promoted | None:
        """What the leader learned, `Promoted` where the caller is to lead now, None after *limit* seconds."""
        gate: Gate[Completed | Promoted] = runtime.gate()
        flight.followers[gate] = None
        try:
            return await gate.wait(limit)
        except BaseException:
            if gate.value is _PROMOTED:  # cancelled in the moment of promotion: the next one leads
                self.leave(key, flight)
            raise
        finally:
            flight.followers.pop(gate, None)  # a run may outlast any number of followers

    def land(self, key: StorageKey, flight: Flight, completed: Completed) -> None:
        """The outcome is known: everybody has it."""
        del self._by_key[key]
        for gate in flight.followers:
            gate.give(completed)

    def leave(self, key: StorageKey, flight: Flight) -> None:
        """The leader goes without an outcome: the first follower still there leads."""
        if any(gate.give(_PROMOTED) for gate in flight.followers):
            return
        del self._by_key[key]

    def __contains__(self, key: StorageKey) -> bool:
        return key in self._by_key

    def __len__(self) -> int:
        return len(self._by_key)
