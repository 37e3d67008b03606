"""
The server: uvicorn with this service's limits and logs, in one process or in several that share port and
store.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from ml_api.observability.logs import configure_logging
from ml_api.server.connection_limits import ConnectionLimits, raise_descriptor_limit
from ml_api.server.connection_table import ConnectionTable
from ml_api.server.protocol import LimitedProtocol
from ml_api.settings import BASE_URL, METRICS_DIRECTORY, RUNTIME_DIRECTORY, Settings

__all__ = ["ServiceConfig", "serve"]


# s: until a worker says that it is there. uvicorn's 5 are less than several workers take to start on half a processor,
# and who takes longer is killed and started again, for ever.
_WORKER_PATIENCE = 20


class ServiceConfig(uvicorn.Config):
    """uvicorn's configuration with the limits that `LimitedProtocol` keeps to; it survives the way to a worker."""

    def __init__(self, app: Any, settings: Settings, **options: Any) -> None:
        self.limits = ConnectionLimits.of(settings)
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
        """Load the application, in every process; what that made stays, so no later collection walks over it."""
        super().load()
        self.connections = ConnectionTable(raise_descriptor_limit(self.limits.max_connections))
        gc.freeze()  # a thousand objects of garbage among them: looking for those takes longer than they are worth
        gc.set_threshold(10_000, 20, 20)  # a request makes thousands of objects and hardly a cycle

    def configure_logging(self) -> None:
        """Set up this process's logs; uvicorn calls it in every process."""
        configure_logging(*self._log_style)


def serve(settings: Settings, *, host: str, port: int, workers: int) -> None:
    """
    Serve until SIGTERM or SIGINT, then finish what was begun within `shutdown_timeout` seconds.

    Args:
        port: 0 takes a free one; the log says which.
    Raises:
        ModelUnusable, StoreUnusable: Nothing was served.
    """
    from ml_api.app import create_app
    from ml_api.serving.registry import load_models

    # uvicorn repeats the signal once it has stopped: a stop that was asked for, and done, is a success.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if port:
        os.environ[BASE_URL] = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    with _runtime_directory(shared=workers > 1):
        if workers == 1:
            uvicorn.Server(ServiceConfig(create_app(settings), settings, host=host, port=port)).run()
            return
        load_models(settings)  # a model that no worker can load is one line here, not a traceback from each
        config = ServiceConfig(
            "ml_api.app:create_app", settings, factory=True, host=host, port=port, workers=workers
        )
        Multiprocess(config, sockets=[config.bind_socket()]).run()


@contextlib.contextmanager
def _runtime_directory(*, shared: bool) -> Iterator[None]:
    """A private directory where the workers meet; they learn of it by their environment."""
    with tempfile.TemporaryDirectory(prefix="ml-api-") as directory:
        os.environ[RUNTIME_DIRECTORY] = directory
        if shared:
            metrics = Path(directory) / "metrics"
            metrics.mkdir()
            os.environ[METRICS_DIRECTORY] = str(metrics)
        yield
