"""Raises the error that names the extra to install when an optional library is missing."""

from __future__ import annotations

__all__ = ["missing"]


def missing(extra: str, what: str, error: ImportError) -> ImportError:
    """
    The error for *what*, such as `RedisStore`, when its library cannot be imported.

    >>> str(missing("redis", "RedisStore", ModuleNotFoundError(name="redis")))
    "RedisStore needs redis, which is not installed: pip install 'asgi-idempotency[redis]'"
    """
    name = error.name or str(error)
    return ModuleNotFoundError(
        f"{what} needs {name}, which is not installed: pip install 'asgi-idempotency[{extra}]'",
        name=error.name,
    )
