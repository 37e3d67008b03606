"""The Django middleware, for WSGI and for ASGI."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, ClassVar

from asgiref.sync import async_to_sync, iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from idempotency.django.claims import aclaim, claim
from idempotency.django.pending import PENDING, PendingRequest, drop
from idempotency.django.settings import Settings, open_project_store
from idempotency.engine import Engine
from idempotency.engine.sync_engine import SyncEngine

__all__ = ["IdempotencyMiddleware"]

_log = logging.getLogger("idempotency")


class IdempotencyMiddleware:
    """
    One effect per Idempotency-Key for the views of a Django project.

    Put it below `AuthenticationMiddleware` in `MIDDLEWARE`. A key is claimed just before the view, so a request that
    Django refuses before (unknown URL, CSRF, nobody logged in) leaves its key free. The response is recorded when it
    comes back from the view, with `ATOMIC_REQUESTS` after the commit.

    The policy is the view's own (`protect`) or the policy in the setting.

    Raises:
        django.core.exceptions.ImproperlyConfigured: `settings.IDEMPOTENCY` is missing or wrong.
    """

    sync_capable: ClassVar[bool] = True
    async_capable: ClassVar[bool] = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self.settings: Settings = Settings.read()
        self._is_async = iscoroutinefunction(get_response)
        self._lock = threading.Lock()
        self._engine: Any = None
        self.process_view: Callable[..., Any] = self._process_view
        if self._is_async:
            markcoroutinefunction(self)
            self.process_view = self._aprocess_view

    @property
    def engine(self) -> Any:
        """An `Engine` or a `SyncEngine`. It is made at the first request, with its store: after the server forked."""
        if self._engine is None:
            with self._lock:
                if self._engine is None:
                    store = open_project_store(self.settings.store, asynchronous=self._is_async)
                    made: Any = Engine if self._is_async else SyncEngine
                    self._engine = made(store, hooks=self.settings.hooks)
        return self._engine

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Answer one request."""
        if self._is_async:
            return self._acall(request)
        pending = self._open(request)
        if pending.may_have_key and isinstance(request, ASGIRequest):
            # With another plain middleware, Django calls this one in a thread, and cancels what the thread awaits.
            return async_to_sync(self._answer_whole)(pending, request)
        return self._answer_plainly(pending, request)

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        pending = self._open(request)
        if not pending.may_have_key:
            return await self._answer(pending, request)
        return await self._answer_whole(pending, request)

    async def _answer_whole(self, pending: PendingRequest[Any], request: HttpRequest) -> HttpResponseBase:
        """Answer a request that may have a key, even if its client disconnects (E5)."""
        answer = self._answer if self._is_async else sync_to_async(self._answer_plainly)
        return await _until_settled(pending, asyncio.create_task(answer(pending, request)))

    def _answer_plainly(self, pending: PendingRequest[Any], request: HttpRequest) -> HttpResponseBase:
        try:
            response: HttpResponseBase = self.get_response(request)
        except Exception:  # only with DEBUG_PROPAGATE_EXCEPTIONS; otherwise Django answers exceptions itself
            if pending.run is not None:
                failure = pending.failure()
                pending.run.release() if failure is None else pending.run.keep(failure)
            raise
        except BaseException:  # a worker that is told to exit (E4)
            if pending.run is not None:
                pending.run.abandon()
            raise
        finally:
            pending.leave()
        return self._settle(pending, response)

    async def _answer(self, pending: PendingRequest[Any], request: HttpRequest) -> HttpResponseBase:
        try:
            response = await self.get_response(request)
        except Exception:
            if pending.run is not None:
                failure = pending.failure()
                await (pending.run.release() if failure is None else pending.run.keep(failure))
            raise
        except BaseException:
            if pending.run is not None:
                pending.run.abandon()
            raise
        finally:
            pending.leave()
        return await self._asettle(pending, response)

    def _open(self, request: HttpRequest) -> PendingRequest[Any]:
        pending: PendingRequest[Any] = PendingRequest(self.engine, request, self.settings.key_names)
        setattr(request, PENDING, pending)
        if pending.may_have_key:
            pending.read_body()
        return pending

    # Called by Django just before the view.

    def _process_view(self, request: HttpRequest, view: Any, _args: Any, _kwargs: Any) -> HttpResponse | None:
        if claims_itself(view):
            return None
        pending: PendingRequest[Any] = getattr(request, PENDING)
        return claim(pending, partial(self.settings.principal, request), self.settings.policy_for(request))

    async def _aprocess_view(
        self, request: HttpRequest, view: Any, _args: Any, _kwargs: Any
    ) -> HttpResponse | None:
        if claims_itself(view):
            return None
        pending: PendingRequest[Any] = getattr(request, PENDING)
        principal = partial(self.settings.principal, request)
        return await aclaim(pending, principal, self.settings.policy_for(request))

    def process_exception(self, request: HttpRequest, _exception: Exception) -> None:
        """Called by Django if the view raised: then a 500 means an exception, not the view's own answer."""
        pending: PendingRequest[Any] = getattr(request, PENDING)
        pending.raised = True

    # Called with the view's response.

    def _settle(self, pending: PendingRequest[Any], response: HttpResponseBase) -> HttpResponseBase:
        if pending.run is None:
            return pending.in_place_of(response)
        recorded = pending.outcome_of(response)
        if recorded is None:
            pending.run.release()
            return pending.own(response)
        outcome, result = recorded
        return pending.answer(response, pending.run.keep(outcome, result=result), result)

    async def _asettle(self, pending: PendingRequest[Any], response: HttpResponseBase) -> HttpResponseBase:
        if pending.run is None:
            return pending.in_place_of(response)
        recorded = pending.outcome_of(response)
        if recorded is None:
            await pending.run.release()
            return pending.own(response)
        outcome, result = recorded
        return pending.answer(response, await pending.run.keep(outcome, result=result), result)


def claims_itself(view: Any) -> bool:
    """Whether the view makes its own claim, after the checks of its decorators or of Django REST framework."""
    kind = getattr(view, "cls", None) or getattr(view, "view_class", None)
    return bool(
        getattr(view, "idempotency_claims_itself", False) or getattr(kind, "idempotency_claims_itself", False)
    )


async def _until_settled(
    pending: PendingRequest[Any], answering: asyncio.Task[HttpResponseBase]
) -> HttpResponseBase:
    """
    Returns the result of *answering*; once a key is claimed, a cancellation waits for the record (E5).

    Django cancels a request whose client has left, while its view goes on in a thread. A second cancellation, such as
    at the end of the loop, takes effect at once, and the claim stays until its lease ends (E4).
    """
    try:
        return await asyncio.shield(answering)
    except asyncio.CancelledError:
        if pending.run is None:
            answering.cancel()
        try:
            await asyncio.wait([answering])
        except asyncio.CancelledError:
            answering.cancel()
            raise
        if answering.cancelled():
            raise
        if (error := answering.exception()) is None:
            await sync_to_async(drop)(answering.result())
        else:
            _log.error("%s failed after its client had left", pending.keyed.operation, exc_info=error)
        raise
