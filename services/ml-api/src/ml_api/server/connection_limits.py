"""The limits of one connection, and of all connections of a process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ml_api.settings import Settings

__all__ = ["ConnectionLimits", "raise_descriptor_limit"]

_OTHER_DESCRIPTORS = 32  # kept free for the store's connections, files, and sockets of other workers


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """
    Limits below the application. Durations are in seconds, sizes in bytes.

    Attributes:
        max_header_bytes: For the request line and headers together; for the trailers; and for the chunk framing, beyond
            the size of the body.
        max_header_fields: For the number of headers, and for the number of trailers.
        header_timeout: From the connection, or from the first byte of a later request, to the end of its headers.
        keep_alive_timeout: From an answer to the first byte of the next request.
        write_timeout: How long a client may stop reading before the connection is cut.
        linger_timeout: How long to go on reading after a last answer that was sent before its request was complete. To
            close at once would reset the connection, and a reset can destroy an answer that the client has not read.
        linger_bytes: How much to read, and drop, in that time.
        max_pipelined: Requests that may wait on one connection behind the running one.
        max_connections: Open connections of one process.
    """

    max_header_bytes: int = 32_768
    max_header_fields: int = 100
    header_timeout: float = 10.0
    keep_alive_timeout: float = 5.0
    write_timeout: float = 30.0
    linger_timeout: float = 2.0
    linger_bytes: int = 8_388_608
    max_pipelined: int = 16
    max_connections: int = 1_000

    @classmethod
    def of(cls, settings: Settings) -> ConnectionLimits:
        """Return the limits in *settings*."""
        return cls(
            max_header_bytes=settings.max_header_bytes,
            max_header_fields=settings.max_header_fields,
            header_timeout=settings.header_timeout,
            keep_alive_timeout=settings.keep_alive_timeout,
            write_timeout=settings.write_timeout,
            linger_bytes=8 * settings.max_body_bytes,
            max_connections=settings.max_connections,
        )


def raise_descriptor_limit(max_connections: int) -> int:
    """
    Raise this process's file descriptor limit for *max_connections*; return how many connections it can have.

    Without free descriptors, a process cannot accept any connection, not even for `/health`. So only half of the
    available descriptors are used: connections may arrive faster than others are closed.
    """
    try:
        import resource
    except ImportError:  # Windows: no such limit
        return max_connections
    opened = len(os.listdir("/dev/fd")) if Path("/dev/fd").is_dir() else 64  # noqa: PTH208 - names are counted
    wanted = opened + _OTHER_DESCRIPTORS + 2 * max_connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
        except (OSError, ValueError):
            pass  # some systems have another limit below the hard limit
    if soft == resource.RLIM_INFINITY:
        return max_connections
    return max(1, min(max_connections, (soft - opened - _OTHER_DESCRIPTORS) // 2))
