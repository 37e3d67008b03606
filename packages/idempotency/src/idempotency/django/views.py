"""A decorator for views, which gives a view its own policy and claims after the checks of other decorators."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypeVar, overload

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest, HttpResponse

from idempotency._core.policy import Policy
from idempotency.django.claims import aclaim, claim
from idempotency.django.pending import PendingRequest, pending_of
from idempotency.django.settings import Settings

__all__ = ["protect"]

ViewT = TypeVar("ViewT", bound=Callable[..., Any])


@overload
def protect(view: ViewT, /) -> ViewT: ...
@overload
def protect(view: None = None, /, *, policy: Policy) -> Callable[[ViewT], ViewT]: ...


def protect(view: Any = None, /, *, policy: Policy | None = None) -> Any:
    """
    Protect a view: put it directly above the function, below `login_required`, `require_POST` and other checks.

    For a class-based view, put it on `post` by `method_decorator` and set `idempotency_claims_itself = True` on the
    class.

    Args:
        policy: The policy; by default the policy in the setting.
    Raises:
        RuntimeError: At a request: `IdempotencyMiddleware` is not installed. The view did not run.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        if iscoroutinefunction(function):

            @wraps(function)
            async def protected_async(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
                answer = await aclaim(*_prepared(request, policy))
                return await function(request, *args, **kwargs) if answer is None else answer

            protected: Any = protected_async
        else:

            @wraps(function)
            def protected_sync(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
                answer = claim(*_prepared(request, policy))
                return function(request, *args, **kwargs) if answer is None else answer

            protected = protected_sync
        protected.idempotency_claims_itself = True
        return protected

    return decorate if view is None else decorate(view)


def claim_now(request: Any, policy: Policy | None) -> HttpResponse | None:
    """Claim for a view of a framework that wraps Django's request."""
    return claim(*_prepared(request, policy))


def _prepared(
    request: Any, policy: Policy | None
) -> tuple[PendingRequest[Any], Callable[[], str], Policy | None]:
    pending, settings = pending_of(getattr(request, "_request", request)), Settings.read()
    pending.require_unclaimed()
    return pending, partial(settings.principal, request), policy or settings.policy_for(request)
