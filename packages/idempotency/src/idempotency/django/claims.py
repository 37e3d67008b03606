"""Claims a request just before its view: for plain and coroutine views, with a sync or an async engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.http import HttpResponse

from idempotency._core.outcome import Response
from idempotency._core.policy import Policy
from idempotency._http.keyed_request import require_known_headers
from idempotency.django.pending import PendingRequest

__all__ = ["aclaim", "claim"]


def claim(
    pending: PendingRequest[Any], principal: Callable[[], str], policy: Policy | None
) -> HttpResponse | None:
    """
    Claim from code that cannot await.

    Returns:
        The answer to send instead of running the view: a replay or a problem. None: run the view.
    """
    if policy is None:
        return None
    require_known_headers(policy, pending.key_names)
    prepared = pending.keyed.prepare(principal, policy)
    if isinstance(prepared, Response):
        return pending.replace(prepared)
    if not prepared:
        return None
    pending.require_open()
    begin = pending.engine.begin
    verdict = (async_to_sync(begin) if iscoroutinefunction(begin) else begin)(pending.keyed)
    return pending.begin(pending.keyed.conclude(verdict))


async def aclaim(
    pending: PendingRequest[Any], principal: Callable[[], str], policy: Policy | None
) -> HttpResponse | None:
    """`claim` on an event loop. *principal* is called in a thread, because it may read the database."""
    if policy is None:
        return None
    require_known_headers(policy, pending.key_names)
    if not (pending.may_have_key or policy.required):
        return None
    prepared = await sync_to_async(pending.keyed.prepare)(principal, policy)
    if isinstance(prepared, Response):
        return pending.replace(prepared)
    if not prepared:
        return None
    pending.require_open()
    begin = pending.engine.begin
    verdict = await (begin if iscoroutinefunction(begin) else sync_to_async(begin))(pending.keyed)
    return pending.begin(pending.keyed.conclude(verdict))
