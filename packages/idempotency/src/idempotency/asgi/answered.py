"""Builds the exception that ends a handler: one of the framework's own type, which it does not log as a failure."""

from __future__ import annotations

import sys
from typing import Any

from idempotency._core.errors import Answered
from idempotency.asgi.types import Scope

__all__ = ["answered", "is_answered"]


def answered(scope: Scope, status: int) -> Answered:
    """
    An `Answered` that is also the `HTTPException` of the request's framework, if that is known.

    Args:
        status: The status of the answer that was sent instead of the handler's.
    """
    if "litestar_app" in scope:
        return _of_litestar(status)
    if "quart" in sys.modules and sys.modules["quart"].has_request_context():
        return _of_quart(status)
    if "starlette.exceptions" in sys.modules and "app" in scope:
        return _of_starlette(status)
    return Answered()


def is_answered(error: BaseException) -> bool:
    """
    Whether *error* is `Answered`, or was raised from it.

    Litestar's exception handlers inside a middleware raise another exception if the answer has already begun.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, Answered):
        cause = cause.__cause__
    return cause is not None


def _of_starlette(status: int) -> Answered:
    from starlette.exceptions import HTTPException

    class StarletteAnswered(HTTPException, Answered):
        """Ends the handler."""

    return StarletteAnswered(status)


def _of_litestar(status: int) -> Answered:
    from litestar.exceptions import HTTPException

    class LitestarAnswered(HTTPException, Answered):
        """Ends the handler."""

    return LitestarAnswered(status_code=status)


def _of_quart(status: int) -> Answered:
    from werkzeug.exceptions import HTTPException

    class QuartAnswered(HTTPException, Answered):
        """Ends the handler."""

        code = status

    made: Any = QuartAnswered()
    return made  # type: ignore[no-any-return]
