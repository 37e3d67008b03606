"""The server's set-up around the application."""

from __future__ import annotations

from ml_api.server.serve import ServiceConfig
from ml_api.settings import Settings


def test_a_worker_may_take_its_time_to_start_and_a_stop_need_not_wait_for_it_too_long() -> None:
    settings = Settings.model_validate({"api_key": "the-api-key-of-the-tests"})
    config = ServiceConfig("ml_api.app:create_app", settings, factory=True)
    # The supervisor kills who is not there by then, and looks at nothing else, a signal to stop included.
    assert 10 <= config.timeout_worker_healthcheck < settings.shutdown_timeout
