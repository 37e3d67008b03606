"""Where the processes of one service find each other: two variables that `ml-api serve` sets for its workers."""

from __future__ import annotations

__all__ = ["METRICS_DIRECTORY", "RUNTIME_DIRECTORY"]

RUNTIME_DIRECTORY = "ML_API_RUNTIME_DIRECTORY"
"""A private directory with a socket for each worker."""

METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus-client keeps the numbers of several workers; it looks for it when it is imported."""
