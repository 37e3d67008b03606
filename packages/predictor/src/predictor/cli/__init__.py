"""The `predictor` command: inspect, verify, describe and run a model from a shell."""

from __future__ import annotations

from predictor.cli.main import main

__all__ = ["main"]
