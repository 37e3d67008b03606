"""
Fixtures for pytest: put `pytest_plugins = ["idempotency.testing.fixtures"]` into your top-level `conftest.py`.

Without that line the package changes nothing in your test runs.
"""

from __future__ import annotations

from collections.abc import Iterator

from idempotency._runtime.extras import missing
from idempotency.testing._overrides import protection_off, swapped_stores

try:
    import pytest
except ModuleNotFoundError as _error:
    raise missing("testing", "idempotency.testing.fixtures", _error) from _error

__all__ = ["idempotency_in_memory", "idempotency_off"]


@pytest.fixture
def idempotency_off() -> Iterator[None]:
    """Protected routes and functions run unprotected in the test: see `protection_off`."""
    with protection_off():
        yield


@pytest.fixture
def idempotency_in_memory() -> Iterator[None]:
    """The test uses new stores in memory: see `swapped_stores`."""
    with swapped_stores():
        yield
