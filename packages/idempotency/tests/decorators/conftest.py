"""Fixtures: decorated functions of both kinds, and both event loops."""

from __future__ import annotations

import pytest
from decorated import Harness


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["async", "sync"])
def harness(request: pytest.FixtureRequest) -> Harness:
    return Harness(request.param)
