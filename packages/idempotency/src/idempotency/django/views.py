"""A decorator for views: with a policy of their own, claimed after what the decorators around them refuse."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, overload

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest, HttpResponse

from idempotency._core.policy import Policy
from idempotency.django.middleware import aclaim, claim
from idempotency.django.pending import pending_of
from idempotency.django.settings import Settings

__all__ = ["protect"]

ViewT = TypeVar("ViewT", bound=Callable[..., Any])


@overload
def protect(view: ViewT, /) -> ViewT: ...
@overload
def protect(view: None = None, /, *, policy: Policy) -> Callable[[ViewT], ViewT]: ...


def protect(view: Any = None, /, *, policy: Policy | None = None) -> Any:
    """
    Claim directly above the function: below `login_required`, `require_POST` and whatever else may refuse.

    For a class-based view, put it on `post` by `method_decorator` and set `idempotency_claims_itself = True` on the
    class.

    Args:
        policy: What is promised; by default what the setting says.
    Raises:
        RuntimeError: At a request: `IdempotencyMiddleware` is not installed. Nothing ran.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        if iscoroutinefunction(function):

            @wraps(function)
            async def protected_async(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
                pending, chosen, principal = _prepared(request, policy)
                if chosen is not None:
                    answer = pending.begin(await aclaim(pending, principal, chosen))
                    if answer is not None:
                        return answer
                return await function(request, *args, **kwargs)

            protected: Any = protected_async
        else:

            @wraps(function)
            def protected_sync(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
                answer = claim_now(request, policy)
                return function(request, *args, **kwargs) if answer is None else answer

            protected = protected_sync
        protected.idempotency_claims_itself = True
        return protected

    return decorate if view is None else decorate(view)


def claim_now(request: HttpRequest, policy: Policy | None) -> HttpResponse | None:
    """Claim for a view without `async`; what to answer in its place, if anything."""
    pending, chosen, principal = _prepared(request, policy)
    if chosen is None:
        return None
    if iscoroutinefunction(pending.engine.begin):
        from asgiref.sync import async_to_sync

        return pending.begin(async_to_sync(aclaim)(pending, principal, chosen))
    return pending.begin(claim(pending, principal, chosen))


def _prepared(request: HttpRequest, policy: Policy | None) -> tuple[Any, Policy | None, Callable[[], str]]:
    http_request = getattr(request, "_request", request)  # Django REST framework wraps it
    pending, settings = pending_of(http_request), Settings.read()
    if policy is not None:
        chosen: Policy | None = policy
    else:
        chosen = settings.policy if isinstance(settings.policy, Policy) else settings.policy(request)
    return pending, chosen, lambda: settings.principal(request)
