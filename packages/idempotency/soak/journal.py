"""
What happened, as the processes saw it: lines appended to one file, which `kill -9` cannot take back.

Times are seconds of the machine's monotonic clock, which all processes of a run share.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Journal", "read"]


class Journal:
    """
    A file opened for appending, inherited by every process that is forked later.

    Each line is one `write`, so it is there whole or not at all, and in the order of the writes (POSIX, O_APPEND).
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, what: str, **members: Any) -> None:
        """Append one event; *members* must be of JSON."""
        line = {"what": what, "at": time.monotonic(), "pid": os.getpid()} | members
        os.write(self._file, json.dumps(line).encode() + b"\n")


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Every event, in order."""
    with path.open("rb") as lines:
        yield from map(json.loads, lines)
