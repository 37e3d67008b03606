"""The engine for code without an event loop; it lives in `idempotency.engine.sync_engine`."""

from __future__ import annotations

from idempotency.engine.sync_engine import SyncEngine, SyncRun

__all__ = ["SyncEngine", "SyncRun"]
