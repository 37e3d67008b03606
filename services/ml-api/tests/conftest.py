"""
What the service's tests share: settings that read no environment, an HTTP client, a real Redis, real
candles.
"""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The service runs on asyncio: uvicorn knows no other loop."""
    return "asyncio"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No setting of the machine or of a `.env` nearby reaches a test."""
    for name in os.environ:
        if name.upper().startswith("ML_SERVICE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
