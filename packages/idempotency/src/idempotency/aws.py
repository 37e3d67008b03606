"""
Idempotency for AWS Lambda: a handler runs once per key; its lease lasts as long as Lambda lets it run.

>>> from idempotency.aws import lambda_handler
>>> from idempotency.stores.memory import SyncMemoryStore
>>> @lambda_handler(store=SyncMemoryStore(), operation="charge", key=lambda event: event["orderId"])
... def handler(event, context):
...     return {"charged": event["cents"]}
>>> class Context:  # what Lambda passes
...     def get_remaining_time_in_millis(self):
...         return 3_000
>>> handler({"orderId": "order-1", "cents": 500}, Context())
{'charged': 500}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar, cast

from idempotency._core.annotations import signature
from idempotency._core.callables import is_async
from idempotency._core.policy import Policy
from idempotency._core.types import Claim
from idempotency.codecs import JSON, Codec
from idempotency.decorators import idempotent
from idempotency.engine.checks import is_async_store
from idempotency.events import Hook
from idempotency.store import SyncStore

__all__ = ["LambdaContext", "lambda_handler"]

_MARGIN = 1.0  # s, because Lambda stops a handler a little later than it says


class LambdaContext(Protocol):
    """The part of Lambda's context that this library reads."""

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until Lambda stops the handler."""


HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])


class _Unrenewed:
    """*store* without renewals: the lease already lasts as long as the invocation, and must not last longer."""

    def __init__(self, store: SyncStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def renew(self, claim: Claim, *, lease: float) -> bool:  # noqa: ARG002 - those of a store
        """True: nobody can take the claim over before the invocation ends."""
        return True


def lambda_handler(
    *,
    store: SyncStore,
    operation: str,
    key: Callable[[Any], str],
    fingerprint: Callable[[Any], object] | None = None,
    codec: Codec[Any] = JSON,
    policy: Policy = Policy(),  # noqa: B008
    hooks: Sequence[Hook] = (),
) -> Callable[[HandlerT], HandlerT]:
    """
    Run a Lambda handler once per key; every other invocation with that key gets the value of the first one.

    It also protects a function of one record of a batch and the context, which the handler calls for each record.

    The lease is the time that the invocation has left, plus one second, whatever *policy* says. So if Lambda stops an
    invocation, the next one can take its key over at once; and no invocation runs beside another that still works.

    Args:
        store: A `SyncStore` that outlives the sandbox, such as `SyncDynamoDBStore` or `SyncRedisStore`. Make it outside
            the handler, so that warm invocations share its connections.
        operation: The function's stable name in the store.
        key: Takes the event and returns its key: a business key, such as an order number. A message id protects only
            from redelivery.
        fingerprint: Takes the event and returns the part that must be equal under one key; by default the whole event.
        codec: How the value is recorded.
        policy: As for `idempotent`; its lease is ignored.
        hooks: Called with every event.
    Raises:
        TypeError: At decoration, as `idempotent` does.

    The handler raises what a function decorated by `idempotent` raises, and `TypeError` if it is called without
    Lambda's context. Do not catch `InProgress`: Lambda, or the queue in front of it, then tries again.
    """

    def decorate(handler: HandlerT) -> HandlerT:
        given = signature(handler)

        def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, LambdaContext]:
            bound = given.bind(*args, **kwargs)
            bound.apply_defaults()
            event, context, *_ = (*bound.args, *bound.kwargs.values())
            return event, context

        def policy_of(*args: Any, **kwargs: Any) -> Policy:
            return replace(policy, lease=_left(read(args, kwargs)[1]) + _MARGIN)

        def fingerprinted(*args: Any, **kwargs: Any) -> object:
            event = read(args, kwargs)[0]
            return event if fingerprint is None else fingerprint(event)

        # If async, pass the store itself: the error of `idempotent` then names it.
        refused = is_async_store(store) or is_async(handler)
        decorated: Any = idempotent(
            store=store if refused else cast("SyncStore", _Unrenewed(store)),
            operation=operation,
            key=lambda *args, **kwargs: key(read(args, kwargs)[0]),
            fingerprint=fingerprinted,
            codec=codec,
            policy=policy_of,
            hooks=hooks,
        )(handler)
        return cast("HandlerT", decorated)

    return decorate


def _left(context: LambdaContext) -> float:
    """Seconds that the invocation has left."""
    try:
        milliseconds = context.get_remaining_time_in_millis()
    except AttributeError:
        raise TypeError(
            "the second argument of a Lambda handler must be the context that Lambda passes, because the lease is the "
            "time left. In a unit test pass an object with get_remaining_time_in_millis(), or switch the protection "
            "off (idempotency.testing.protection_off)"
        ) from None
    return max(0.0, milliseconds / 1000)
