"""
Counts of hits, misses, conflicts, takeovers and lost claims, minute by minute, for the dashboard.

Two hooks: `Counts` for one process, and `StoreCounts` for all processes that share a store. Both keep one hour; for
longer times and for alarms use `idempotency.hooks.PrometheusHook`.
"""

from __future__ import annotations

from idempotency.counts.minutes import SERIES, Counts, Series
from idempotency.counts.shared import StoreCounts

__all__ = ["SERIES", "Counts", "Series", "StoreCounts"]
