"""Fails with the name of a part of a library that is no longer where this package expects it."""

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
