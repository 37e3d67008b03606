"""Limits what one connection, and all of them together, may use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ml_api.settings import Settings

__all__ = ["ConnectionLimits", "raise_descriptor_limit"]

_OTHER_DESCRIPTORS = 32  # for what is opened later: the store's connections, files, sockets of other workers


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """
    Limits below the application. Durations are in seconds, sizes in bytes.

    Attributes:
        max_header_bytes: Of the request line and headers together; of trailers; and of what frames a chunked body
            beyond the size of that body.
        max_header_fields: How many headers, and how many trailers.
        header_timeout: From the connection, or from the first byte of a later request, to the end of its headers.
        keep_alive_timeout: From an answer to the first byte of the next request.
        write_timeout: How long a client may not read before the connection is cut.
        linger_timeout: How long a connection is still read from after a last answer that came before the end of its
            request. To close at once would reset it, and a reset can destroy an answer that was not read yet.
        linger_bytes: How much is read at most in that time; it is dropped.
        max_pipelined: Requests that may wait on one connection behind the one that runs.
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
        """The limits that *settings* ask for."""
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
    Let this process open as many files as *max_connections* need; return how many connections it can really have.

    A process without free descriptors can accept nobody, `/health` included. So what remains below the limit that the
    system sets is halved: connections may arrive faster than others are closed for them.
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
            pass  # a system with a limit of its own below the hard one
    if soft == resource.RLIM_INFINITY:
        return max_connections
    return max(1, min(max_connections, (soft - opened - _OTHER_DESCRIPTORS) // 2))
