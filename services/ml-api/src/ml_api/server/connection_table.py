"""Tracks the open connections of a process, and which of them may be closed to accept a new one."""

from __future__ import annotations

from typing import Protocol

__all__ = ["ConnectionTable", "Evictable"]


class Evictable(Protocol):
    """A connection as the table sees it."""

    @property
    def anonymous(self) -> bool:
        """Whether the request that runs was not let in with a key."""
        ...

    def evict(self) -> None:
        """Close at once, to make room."""
        ...


class ConnectionTable:
    """
    Keeps at most *most* connections open.

    A new one is let in while another can be closed for it: the one that has been without a running request for
    longest, else the one whose client has not read its answer for longest, else the one that has been answering a
    request without a key for longest. So whoever has no key and holds connections only closes his own. A connection
    on which a request with a key runs is never closed.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[Evictable, None] = {}  # each in the order in which they came into that state
        self._working: dict[Evictable, None] = {}
        self._stalled: dict[Evictable, None] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._working)

    def admit(self, connection: Evictable) -> bool:
        """Count *connection*, which is new; False where there is no room and none can be made: then refuse it."""
        if len(self) >= self._most and (victim := self._victim()) is not None:
            self.remove(victim)
            victim.evict()
        has_room = len(self) < self._most
        self._waiting[connection] = None
        return has_room

    def remove(self, connection: Evictable) -> None:
        """Forget a connection that is closed."""
        self._waiting.pop(connection, None)
        self._working.pop(connection, None)
        self._stalled.pop(connection, None)

    def waits(self, connection: Evictable) -> None:
        """No request runs on *connection* any more."""
        if connection in self._working:
            self.remove(connection)
            self._waiting[connection] = None

    def works(self, connection: Evictable) -> None:
        """A request runs on *connection*."""
        if connection in self._waiting:
            self.remove(connection)
            self._working[connection] = None

    def stalls(self, connection: Evictable) -> None:
        """The client of *connection* does not read its answer."""
        if connection in self._working:
            self._stalled[connection] = None

    def flows(self, connection: Evictable) -> None:
        """The client of *connection* reads again."""
        self._stalled.pop(connection, None)

    def _victim(self) -> Evictable | None:
        for connections in (self._waiting, self._stalled):
            for connection in connections:
                return connection
        return next((connection for connection in self._working if connection.anonymous), None)
