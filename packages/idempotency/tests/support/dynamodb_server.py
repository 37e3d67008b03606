"""
DynamoDB for tests: moto's, over HTTP, in a process of its own.

It answers one request at a time. moto checks a condition and writes in two steps, without a lock; DynamoDB does both in
one step for an item, and so does a server that handles one request at a time.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config

__all__ = ["client_of", "start_dynamodb"]


@contextmanager
def start_dynamodb() -> Iterator[str]:
    """The server's URL."""
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().decode().strip()
            assert port, "moto's server did not start"
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def client_of(url: str, **config: Any) -> Any:
    """A client of that server."""
    return boto3.client(
        "dynamodb",
        region_name="eu-central-1",
        endpoint_url=url,
        aws_access_key_id="tests",
        aws_secret_access_key="tests",
        config=Config(max_pool_connections=20, **config),
    )


def serve() -> None:
    """Serve until the process that started this one goes away."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open

        def log(self, *_: object) -> None:
            pass

    moto, one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def application(environ: Any, start_response: Any) -> Any:
        with one_at_a_time:
            return list(moto(environ, start_response))

    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve()
