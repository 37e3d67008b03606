"""Free ports for servers that take a port number and no socket."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress

__all__ = ["free_port"]


def free_port(*, also_free: int = 0) -> int:
    """
    A port that is free, and so is the one *also_free* above it.

    Both are below 32 768. The kernel takes the ports of outgoing connections and of sockets bound to port 0 from above,
    so that no other test takes these before the server has started.
    """
    while True:
        port = random.randrange(10_000, 32_000 - also_free)
        with suppress(OSError), ExitStack() as stack:
            for needed in {port, port + also_free}:
                stack.enter_context(socket.create_server(("127.0.0.1", needed)))
            return port
