"""Tracks the open connections of a process, and chooses which one to close to accept a new one."""

from __future__ import annotations

from typing import Protocol

__all__ = ["ConnectionTable", "Evictable"]


class Evictable(Protocol):
    """What the table needs of a connection."""

    @property
    def anonymous(self) -> bool:
        """Whether the running request had no valid key."""

    def evict(self) -> None:
        """Close at once, to make room."""


class ConnectionTable:
    """
    Keeps at most *most* connections open.

    If all are open, a new connection is accepted by closing another: the one without a running request for longest;
    else the one whose client has not read its answer for longest; else the one that has been answering a request
    without a valid key for longest. So a client without a key that holds many connections loses only its own. A
    connection with a running request that has a valid key is not closed while its client reads.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[Evictable, None] = {}  # each dict in the order of entering the state
        self._working: dict[Evictable, None] = {}
        self._stalled: dict[Evictable, None] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._working)

    def admit(self, connection: Evictable) -> bool:
        """Count the new *connection*; return False if there is no room and none can be made: then refuse it."""
        if len(self) >= self._most and (victim := self._victim()) is not None:
            self.remove(victim)
            victim.evict()
        has_room = len(self) < self._most
        self._waiting[connection] = None
        return has_room

    def remove(self, connection: Evictable) -> None:
        """Remove a closed connection."""
        self._waiting.pop(connection, None)
        self._working.pop(connection, None)
        self._stalled.pop(connection, None)

    def waits(self, connection: Evictable) -> None:
        """Note that no request runs on *connection* any more."""
        if connection in self._working:
            self.remove(connection)
            self._waiting[connection] = None

    def works(self, connection: Evictable) -> None:
        """Note that a request runs on *connection*."""
        if connection in self._waiting:
            self.remove(connection)
            self._working[connection] = None

    def stalls(self, connection: Evictable) -> None:
        """Note that the client of *connection* does not read its answer."""
        if connection in self._working:
            self._stalled[connection] = None

    def flows(self, connection: Evictable) -> None:
        """Note that the client of *connection* reads again."""
        self._stalled.pop(connection, None)

    def _victim(self) -> Evictable | None:
        for connections in (self._waiting, self._stalled):
            for connection in connections:
                return connection
        return next((connection for connection in self._working if connection.anonymous), None)
