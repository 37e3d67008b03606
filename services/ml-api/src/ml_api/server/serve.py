"""The server: uvicorn with this service's limits and logs, in one process, or in several that share port and store."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from ml_api import Unusable
from ml_api.observability.logs import configure_logging
from ml_api.observability.tracing import check_tracing
from ml_api.server.connection_table import ConnectionTable
from ml_api.server.descriptor_limit import raise_descriptor_limit
from ml_api.server.protocol import LimitedProtocol
from ml_api.settings import BASE_URL, METRICS_DIRECTORY, RUNTIME_DIRECTORY, Settings

__all__ = ["AddressUnusable", "ServiceConfig", "serve"]


# s for a worker to start. uvicorn's 5 s are too short for several workers on half a processor: a worker that is too
# slow is killed and started again, for ever.
_WORKER_PATIENCE = 20


class AddressUnusable(Unusable):
    """The service cannot listen on its address; the message says why."""


class ServiceConfig(uvicorn.Config):
    """uvicorn's configuration with the settings for `LimitedProtocol`; it can be pickled for a worker."""

    def __init__(self, app: Any, settings: Settings, **options: Any) -> None:
        self.settings = settings
        self.connections: ConnectionTable | None = None
        self._log_style = settings.log_level, settings.log_format
        super().__init__(
            app,
            http=LimitedProtocol,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=settings.shutdown_timeout,
            timeout_worker_healthcheck=_WORKER_PATIENCE,
            **options,
        )

    def load(self) -> None:
        """Load the application, in every process; then exclude its objects from garbage collection."""
        super().load()
        self.connections = ConnectionTable(raise_descriptor_limit(self.settings.max_connections))
        gc.freeze()  # without a collection before: it would free only about a thousand objects
        gc.set_threshold(10_000, 20, 20)  # a request makes thousands of objects and hardly any cycle

    def configure_logging(self) -> None:
        """Set up logging; uvicorn calls this in every process."""
        configure_logging(*self._log_style)


def serve(settings: Settings, *, host: str, port: int, workers: int) -> None:
    """
    Serve until SIGTERM or SIGINT, then finish running requests within `shutdown_timeout` seconds.

    Args:
        port: 0 chooses a free port; the log says which.
    Raises:
        AddressUnusable, ModelUnusable, StoreUnusable, TracingUnusable: The service could not start.
    """
    _check_address(host, port)
    from ml_api.app import create_app
    from ml_api.serving.registry import load_models

    # uvicorn raises the signal again after it has stopped; then exit with 0, because the stop was successful.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if port:
        os.environ[BASE_URL] = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    with _runtime_directory(shared=workers > 1):
        if workers == 1:
            uvicorn.Server(ServiceConfig(create_app(settings), settings, host=host, port=port)).run()
            return
        # So that what no worker can use gives one error line here, not a traceback for each of endless new workers.
        load_models(settings)
        check_tracing()
        config = ServiceConfig(
            "ml_api.app:create_app", settings, factory=True, host=host, port=port, workers=workers
        )
        Multiprocess(config, sockets=[config.bind_socket()]).run()


def _check_address(host: str, port: int) -> None:
    """Try to listen, before anything else is started; uvicorn would do it last, and may not name the address."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, *_, address in found:
            try:
                socket.create_server(address, family=family).close()
            except OSError as error:
                # A name may also have an address that this machine has not, such as ::1 without IPv6.
                if error.errno != errno.EADDRNOTAVAIL or len(found) == 1:
                    raise
    except OSError as error:
        raise AddressUnusable(f"cannot listen on {host}, port {port}: {error.strerror}") from error


@contextlib.contextmanager
def _runtime_directory(*, shared: bool) -> Iterator[None]:
    """Make a private directory for the workers' sockets and metrics; they find it by environment variables."""
    with tempfile.TemporaryDirectory(prefix="ml-api-") as directory:
        os.environ[RUNTIME_DIRECTORY] = directory
        if shared:
            metrics = Path(directory) / "metrics"
            metrics.mkdir()
            os.environ[METRICS_DIRECTORY] = str(metrics)
        yield
