"""
Idempotency for AWS Lambda: a handler runs once per key, and holds its key exactly as long as it may run.

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
from typing import Any, Protocol

from idempotency._core.policy import Policy
from idempotency.codecs import JSON, Codec
from idempotency.decorators import idempotent
from idempotency.events import Hook
from idempotency.store import SyncStore

__all__ = ["LambdaContext", "lambda_handler"]

_MARGIN = 1.0  # s; Lambda stops a handler a little after it said


class LambdaContext(Protocol):
    """What this library reads of the context that Lambda passes."""

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until Lambda stops the handler."""


Handler = Callable[[Any, Any], Any]


def lambda_handler(
    *,
    store: SyncStore,
    operation: str,
    key: Callable[[Any], str],
    fingerprint: Callable[[Any], object] | None = None,
    codec: Codec[Any] = JSON,
    policy: Policy = Policy(),  # noqa: B008
    hooks: Sequence[Hook] = (),
) -> Callable[[Handler], Handler]:
    """
    Run a Lambda handler once per key; every other invocation with that key gets the first one's value.

    The lease is the time that the invocation has left, and a second, whatever *policy* says: one that Lambda stops
    leaves its key to the next invocation at once, and none can be run beside one that still works.

    Args:
        store: A `SyncStore` that outlives the sandbox, such as `SyncRedisStore` or `SyncPostgresStore`. Make it outside
            the handler, so that warm invocations share its connections.
        operation: The function's stable name in the store.
        key: The key of an event: a business key, such as an order's number. A message id covers redelivery alone.
        fingerprint: What makes two events with one key the same; by default all of the event.
        codec: How the value is recorded.
        policy: As for `idempotent`, but for the lease.
        hooks: Called with every event.
    Raises:
        TypeError: At decoration, as `idempotent` does.

    The handler raises what a function decorated by `idempotent` raises. Let `InProgress` pass: Lambda, or the queue in
    front of it, then asks again.
    """

    def under(_event: Any, context: LambdaContext) -> Policy:
        return replace(policy, lease=context.get_remaining_time_in_millis() / 1000 + _MARGIN)

    def decorate(handler: Handler) -> Handler:
        decorated: Handler = idempotent(
            store=store,
            operation=operation,
            key=lambda event, _context: key(event),
            fingerprint=lambda event, _context: event if fingerprint is None else fingerprint(event),
            codec=codec,
            policy=under,
            hooks=hooks,
        )(handler)
        return decorated

    return decorate
