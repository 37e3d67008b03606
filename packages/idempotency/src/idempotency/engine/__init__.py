"""The engine: performs what the pure core decides, with a store, a clock and the running event loop or threads."""

from __future__ import annotations

from idempotency.engine.async_engine import Engine
from idempotency.engine.request import Ask, OperationRequest
from idempotency.engine.run import Run

__all__ = ["Ask", "Engine", "OperationRequest", "Question", "Run"]

Question = OperationRequest
"""The former name of `OperationRequest`, kept so that code which imports it goes on working."""
