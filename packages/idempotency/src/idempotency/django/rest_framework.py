"""
Idempotency for the views of Django REST framework, which authenticate inside the view.

    class Charges(IdempotentAPIView):
        permission_classes = [IsAuthenticated]

        def post(self, request): ...

    @protect
    @api_view(["POST"])
    @permission_classes([IsAuthenticated])
    def charge(request): ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final, overload

from rest_framework.exceptions import APIException
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from idempotency._core.policy import Policy
from idempotency._http.refused_input import Asked, refused_input
from idempotency.django.pending import PENDING, PendingRequest
from idempotency.django.views import claim_now

__all__ = ["IdempotentAPIView", "IdempotentMixin", "protect"]

View = Callable[..., Any]


# The functions that read and check the input; and those that count only if no method of the application was called.
_ASKED: Final[Asked] = {
    "rest_framework.request": {"_load_data_and_files", "_parse"},
    "rest_framework.serializers": {"is_valid"},
}
_BEFORE: Final[Asked] = {
    "rest_framework.generics": {"get_object"},
    "rest_framework.views": {"http_method_not_allowed"},
}
_FRAMEWORKS: Final = ("rest_framework", "django")


class _Answered(APIException):
    """Ends the view of a request that already has an answer; the middleware sends that answer instead of this one."""

    status_code = 409


class IdempotentMixin:
    """
    Put it before `APIView`, or any generic view or view set. It claims after authentication, permissions and throttles.

    Attributes:
        idempotency_policy: The policy; None: the policy in the setting.
    """

    idempotency_claims_itself: ClassVar[bool] = True
    idempotency_policy: ClassVar[Policy | None] = None

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Called by the framework just before the method that handles the request."""
        super().initial(request, *args, **kwargs)  # type: ignore[misc]
        if claim_now(request, self.idempotency_policy) is not None:
            raise _Answered

    def handle_exception(self, exc: Exception) -> Response:
        """Called by the framework with the exception of a view: a refusal of the input leaves the key free."""
        response: Response = super().handle_exception(exc)  # type: ignore[misc]
        request: Any = self.request  # type: ignore[attr-defined]
        pending = getattr(request._request, PENDING, None)  # noqa: SLF001
        if isinstance(pending, PendingRequest):
            refused = refused_input(exc, asked=_ASKED, only_before=_BEFORE, frameworks=_FRAMEWORKS)
            pending.not_accepted = refused
        return response


class IdempotentAPIView(IdempotentMixin, APIView):
    """An `APIView` whose requests run once per key."""


@overload
def protect(view: View, /) -> View: ...
@overload
def protect(view: None = None, /, *, policy: Policy) -> Callable[[View], View]: ...


def protect(view: Any = None, /, *, policy: Policy | None = None) -> Any:
    """
    Protect a view made by `api_view` or by `as_view()` of an `APIView`: put it directly around that.

    Args:
        policy: The policy; by default the policy in the setting.
    Raises:
        TypeError: *view* is another kind of view, is already protected, or has another decorator around it. The view
            is rebuilt from its class, so the work of such a decorator, for example a login, would be lost.
    """

    def decorate(made: Any) -> Any:
        kind = getattr(made, "cls", None)
        if not (isinstance(kind, type) and issubclass(kind, APIView)) or hasattr(made, "actions"):
            raise TypeError(
                "put protect above @api_view, or around as_view(); a view set takes IdempotentMixin"
            )
        if issubclass(kind, IdempotentMixin):
            raise TypeError(
                f"{kind.__name__} is protected already: protect a view once, by protect or IdempotentMixin"
            )
        if _layers(made) != _layers(kind.as_view(**made.initkwargs)):
            raise TypeError(
                "put protect directly above @api_view, or around as_view(), and other decorators above it"
            )
        members = {"idempotency_policy": policy, "__module__": kind.__module__, "__doc__": kind.__doc__}
        protected = type(kind.__name__, (IdempotentMixin, kind), members)
        return protected.as_view(**made.initkwargs)  # type: ignore[attr-defined]

    return decorate if view is None else decorate(view)


def _layers(view: Any) -> list[Any]:
    """The code objects of *view* and of all functions that it wraps."""
    layers = []
    while view is not None:
        layers.append(getattr(view, "__code__", view))
        view = getattr(view, "__wrapped__", None)
    return layers
