"""
Detects that a framework answered before its handler ran: then the answer is not an outcome, and the key is freed.

A wrong yes would run a handler twice, so only evidence counts: what the router left in the scope, where the exception
behind the answer was raised, or which function sends the answer. Without evidence the handler may have run.
`docs/framework-answers.md` shows what can be detected in each framework.
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
    "watch_frameworks",
    "is_routed",
    "raised_before_handler",
]

BEFORE_HANDLER: Final = "idempotency.before_handler"
"""The scope entry that marks a request refused before its handler ran; set before the answer is sent."""

_ROUTER_STATUSES: Final = frozenset({301, 307, 308, 404, 405})
_PACKAGES: Final = frozenset({"starlette", "fastapi", "litestar", "anyio", "contextlib", "idempotency"})
_ROUTING: Final = frozenset({"starlette.routing", "fastapi.routing"})
_ROUTER_FUNCTIONS: Final = frozenset(
    {"Router.app", "APIRouter.app", "Router.not_found", "Route.handle", "APIRoute.handle"}
)
# Modules that compute a handler's arguments, including its dependencies, before the handler is called.
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
    Whether the answer that is being sent comes from the framework, before the handler began.

    Args:
        scope: The scope of the request, with the application's entries.
        error: The exception that is being handled while the answer is sent, if any.
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
        return _is_a(error, "AuthenticationError")  # this middleware handles its backend's errors only
    while trace is not None:
        module = _module(trace.tb_frame)
        if module in _ARGUMENTS or (module, trace.tb_frame.f_code.co_name) == _GUARDS:
            return True
        if module.partition(".")[0] not in _PACKAGES:
            return False  # the application's own code
        trace = trace.tb_next
    # Raised by the framework itself: below 500 it refused the request before the handler; a 500 comes after it.
    if _is_a(error, "RequestValidationError"):
        return True
    return _is_a(error, "HTTPException") and getattr(error, "status_code", 500) < 500


def _is_a(error: BaseException, name: str) -> bool:
    """Whether *error* is an instance of a framework's class called *name*, without importing the framework."""
    return any(
        kind.__name__ == name and kind.__module__.partition(".")[0] in _PACKAGES
        for kind in type(error).__mro__
    )


def _is_refused_by_starlette(scope: Scope, status: int) -> bool:
    """
    Whether the first router that got this scope had no route for the request.

    Routers below a mount may get a copy of the scope, so a mark of theirs that is missing here proves nothing.
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
    """Whether a route answers. Known for Starlette's routers, which add entries to the scope; otherwise True."""
    if "router" not in scope:
        return True  # another framework
    endpoint: Any = scope.get("endpoint")
    while hasattr(endpoint, "app") and not hasattr(endpoint, "routes"):  # the middleware of a mount
        endpoint = endpoint.app
    # An endpoint with routes is only a mounted router.
    return endpoint is not None and not hasattr(endpoint, "routes")


def _is_sent_by_router() -> bool:
    """Whether a Starlette router that answers by itself, such as with a redirect, is among the callers."""
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
    """Whether Django is among the callers and has not resolved the path of the request: then no view was called."""
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


# Some evidence exists only before the answer is sent, or only in another task. It is collected there.


def watch_frameworks(app: ASGIApp) -> None:
    """Install what collects such evidence in *app*, the application inside a middleware of this package."""
    _listen_to_quart()
    layer: Any = app
    for _ in range(100):
        inner = getattr(layer, "app", None)
        if inner is None or isinstance(inner, _MarkBeforeHandler):
            return
        if any(kind.__module__ == "starlette.middleware.base" for kind in type(layer).__mro__):
            layer.app = _MarkBeforeHandler(inner)
        layer = inner


class _MarkBeforeHandler:
    """
    Sets `BEFORE_HANDLER` inside a Starlette `BaseHTTPMiddleware`.

    That middleware runs the application in a separate task, so its exceptions cannot be seen outside.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ambient = sys.exception()
        scope.pop(BEFORE_HANDLER, None)

        async def send_and_mark(message: Message) -> None:
            if message["type"] == "http.response.start":
                error = sys.exception()
                if error is not None and error is not ambient and raised_before_handler(error):
                    scope[BEFORE_HANDLER] = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_mark)
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
