"""
Tells whether a framework answered a request before its handler ran, so that the answer is no outcome and frees the key.

Only evidence counts, since a wrong yes would run a handler twice: the router's own marks in the scope, where the
exception that is being answered was raised, or who is sending. Where there is none, the handler may have run.
`docs/framework-answers.md` shows what each framework can be asked.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

from idempotency.asgi.types import ASGIApp, Message, Receive, Scope, Send

__all__ = [
    "BEFORE_HANDLER",
    "answered_before_handler",
    "ask_frameworks",
    "is_routed",
    "raised_before_handler",
]

BEFORE_HANDLER: Final = "idempotency.before_handler"
"""In the scope of a request that was refused before its handler, where that is known before the answer is sent."""

_ROUTER_STATUSES: Final = frozenset({301, 307, 308, 404, 405})
_PACKAGES: Final = frozenset({"starlette", "fastapi", "litestar", "anyio", "contextlib", "idempotency"})
_ROUTING: Final = frozenset({"starlette.routing", "fastapi.routing"})
_ROUTER_FUNCTIONS: Final = frozenset(
    {"Router.app", "APIRouter.app", "Router.not_found", "Route.handle", "APIRoute.handle"}
)
# What works out a handler's arguments, dependencies included, before it is called.
_ARGUMENTS: Final = frozenset(
    {
        "fastapi.dependencies.utils",
        "litestar._kwargs.dependencies",
        "litestar._kwargs.extractors",
        "litestar._kwargs.kwargs_model",
        "litestar._signature.model",
    }
)
_GUARDS: Final = ("litestar.handlers.base", "authorize_connection")


def answered_before_handler(scope: Scope, status: int, error: BaseException | None) -> bool:
    """
    Whether the answer that is being sent comes from a framework whose handler has not begun.

    Args:
        scope: The request's, as the application filled it in.
        error: The exception that is being handled where the answer is sent, if any.
    """
    if BEFORE_HANDLER in scope or (error is not None and raised_before_handler(error)):
        return True
    if status < 300:
        return False
    if status in _ROUTER_STATUSES and (_is_refused_by_starlette(scope, status) or _is_sent_by_router()):
        return True
    return "django.core.handlers.asgi" in sys.modules and _is_sent_without_a_view()


def raised_before_handler(error: BaseException) -> bool:
    """Whether *error* was raised by a router, a guard, a dependency or a validation, before a handler began."""
    trace = error.__traceback__
    if trace is None:
        return False
    if _module(trace.tb_frame) == "starlette.middleware.authentication":
        return _is_a(error, "AuthenticationError")  # it catches what its backend raises, and nothing else
    while trace is not None:
        module = _module(trace.tb_frame)
        if module in _ARGUMENTS or (module, trace.tb_frame.f_code.co_name) == _GUARDS:
            return True
        if module.partition(".")[0] not in _PACKAGES:
            return False  # the application's own code
        trace = trace.tb_next
    # Raised by the framework itself. It refuses a request before the handler, and fails with a 500 after it.
    if _is_a(error, "RequestValidationError"):
        return True
    return _is_a(error, "HTTPException") and getattr(error, "status_code", 500) < 500


def _is_a(error: BaseException, name: str) -> bool:
    """Whether *error* is of a framework's class of that *name*, without importing the framework."""
    return any(
        kind.__name__ == name and kind.__module__.partition(".")[0] in _PACKAGES
        for kind in type(error).__mro__
    )


def _is_refused_by_starlette(scope: Scope, status: int) -> bool:
    """
    Whether the first router that got this very scope had no route for the request.

    Routers below a mount may have got a copy of the scope, so their marks, missing here, say nothing.
    """
    router = scope.get("router")
    if router is None:
        return False
    if status == 405:
        methods: Any = getattr(scope.get("route"), "methods", None)
        return bool(methods) and scope["method"] not in methods
    own_default = getattr(router, "default", None) == getattr(router, "not_found", scope)
    return "endpoint" not in scope and own_default


def is_routed(scope: Scope) -> bool:
    """Whether a route answers, as far as can be known: Starlette's routers leave their marks on the scope."""
    if "router" not in scope:
        return True  # some other framework
    endpoint: Any = scope.get("endpoint")
    while hasattr(endpoint, "app") and not hasattr(endpoint, "routes"):  # the middleware of a mount
        endpoint = endpoint.app
    return endpoint is not None and not hasattr(endpoint, "routes")  # else only the mount of a router matched


def _is_sent_by_router() -> bool:
    """Whether this is called from a router of Starlette's that answers by itself, such as a redirect."""
    for frame in _callers():
        if _module(frame) == "starlette.responses" and frame.f_code.co_name == "__call__":
            caller = frame.f_back
            return (
                caller is not None
                and _module(caller) in _ROUTING
                and caller.f_code.co_qualname in _ROUTER_FUNCTIONS
            )
    return False


def _is_sent_without_a_view() -> bool:
    """Whether this is called from Django, for a request whose path it has not resolved: no view was called."""
    for frame in _callers():
        if _module(frame) == "django.core.handlers.asgi" and "request" in frame.f_locals:
            return getattr(frame.f_locals["request"], "resolver_match", frame) is None
    return False


def _callers() -> Iterator[FrameType]:
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def _module(frame: FrameType) -> str:
    name: Any = frame.f_globals.get("__name__", "")
    return name if isinstance(name, str) else ""


# Where a framework knows what happened only before it answers, or in another task, it is asked there.


def ask_frameworks(app: ASGIApp) -> None:
    """Prepare *app*, which a middleware was put around, for the question."""
    _listen_to_quart()
    layer: Any = app
    for _ in range(100):
        inner = getattr(layer, "app", None)
        if inner is None or isinstance(inner, _Witness):
            return
        if any(kind.__module__ == "starlette.middleware.base" for kind in type(layer).__mro__):
            layer.app = _Witness(inner)
        layer = inner


class _Witness:
    """
    Notes in the scope what is answered before a handler, inside a `BaseHTTPMiddleware` of Starlette's.

    That runs the application in a task of its own, so that no exception is seen outside.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ambient = sys.exception()
        scope.pop(BEFORE_HANDLER, None)

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                error = sys.exception()
                if error is not None and error is not ambient and raised_before_handler(error):
                    scope[BEFORE_HANDLER] = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception as error:
            if raised_before_handler(error):
                scope[BEFORE_HANDLER] = True
            raise


_listening = False


def _listen_to_quart() -> None:
    global _listening  # noqa: PLW0603
    if _listening or "quart" not in sys.modules:
        return
    from quart.signals import request_finished

    request_finished.connect(_note_routing)
    _listening = True


async def _note_routing(_app: Any, **_: Any) -> None:
    from quart import request

    scope: Any = request.scope
    if request.routing_exception is not None:
        scope[BEFORE_HANDLER] = True
    else:
        scope.pop(BEFORE_HANDLER, None)
