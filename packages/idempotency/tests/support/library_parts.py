"""Fails a test with the name of a private part of a library that this package uses and that is gone."""

from __future__ import annotations

from importlib.metadata import version

import pytest

__all__ = ["require"]


def require(holds: bool, package: str, part: str, *, used_by: str) -> None:
    """
    Fail unless *holds*.

    Args:
        package: The distribution, such as "aiohttp".
        part: What it must have.
        used_by: Our module that relies on it.
    """
    if not holds:
        pytest.fail(
            f"{package} {version(package)} no longer has {part}, which {used_by} uses: adapt that module, or exclude "
            "this version in pyproject.toml",
            pytrace=False,
        )
