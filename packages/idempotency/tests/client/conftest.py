"""Fixtures of the clients' tests: servers whose responses a test scripts."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from scripted_server import Server


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[socket.socket, bytes], None]], Server]]:
    """`serve(answer)`: a server that calls *answer* with each connection and the head of its request."""
    servers: list[Server] = []

    def start(answer: Callable[[socket.socket, bytes], None]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
