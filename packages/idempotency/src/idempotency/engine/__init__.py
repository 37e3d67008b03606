"""The engine performs the decisions of the pure core, with a store, a clock and an event loop or threads."""

from __future__ import annotations

from idempotency.engine.async_engine import Engine
from idempotency.engine.request import Ask, OperationRequest
from idempotency.engine.run import Run

__all__ = ["Ask", "Engine", "OperationRequest", "Question", "Run"]

Question = OperationRequest
"""The former name of `OperationRequest`, kept for code that imports it."""
