"""The configuration of the server."""

from __future__ import annotations

from ml_api.server.serve import ServiceConfig
from ml_api.settings import Settings


def test_the_worker_health_check_timeout_is_below_the_shutdown_timeout() -> None:
    settings = Settings.model_validate({"api_key": "the-api-key-of-the-tests"})
    config = ServiceConfig("ml_api.app:create_app", settings, factory=True)
    # The supervisor kills a worker that has not started by then, and reacts to no signal while it waits.
    assert 10 <= config.timeout_worker_healthcheck < settings.shutdown_timeout
