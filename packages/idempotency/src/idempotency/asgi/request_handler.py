"""Declares the interface of the request that a recorder answers."""

from __future__ import annotations

from typing import Protocol

from idempotency._core.errors import IdempotencyError
from idempotency._core.policy import Policy
from idempotency._core.types import Completed
from idempotency.asgi.types import Scope, Send
from idempotency.engine import Engine

__all__ = ["RequestHandler"]


class RequestHandler(Protocol):
    """A keyed request, and the answers that the library gives instead of the application."""

    engine: Engine
    policy: Policy
    scope: Scope
    send: Send

    @property
    def operation(self) -> str:
        """The name of the operation in events, escaped so that a path cannot forge log lines."""

    async def replay(self, completed: Completed, waited: float) -> None:
        """Answer with a recorded outcome."""

    async def refuse(self, error: IdempotencyError) -> None:
        """Answer with a problem."""
