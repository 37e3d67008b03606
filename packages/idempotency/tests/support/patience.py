"""How long tests wait for what they do not time."""

from __future__ import annotations

__all__ = ["PATIENCE"]

PATIENCE = 30.0
"""Seconds: a bound for a busy machine, never the expected time. A store's own default is one second."""
