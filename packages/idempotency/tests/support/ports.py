"""A port for a server that is told one and takes no socket."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress

__all__ = ["free_port"]


def free_port(*, also_free: int = 0) -> int:
    """
    A port that is free with the one *also_free* above it.

    The kernel gives neither to an outgoing connection nor to who asks for any port, as other tests do until the server
    has started: those it takes from above 32 767.
    """
    while True:
        port = random.randrange(10_000, 32_000 - also_free)
        with suppress(OSError), ExitStack() as stack:
            for one in {port, port + also_free}:
                stack.enter_context(socket.create_server(("127.0.0.1", one)))
            return port
