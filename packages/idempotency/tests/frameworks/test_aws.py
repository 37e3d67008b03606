"""Lambda handlers: the lease is the time that the invocation has left."""

from __future__ import annotations

from typing import Any

import pytest

from idempotency import Policy
from idempotency.aws import lambda_handler
from idempotency.errors import FingerprintMismatch, FirstRunFailed, InProgress
from idempotency.stores.memory import SyncMemoryStore


class Context:
    def __init__(self, milliseconds: int = 3_000) -> None:
        self.milliseconds = milliseconds

    def get_remaining_time_in_millis(self) -> int:
        return self.milliseconds


class Killed(BaseException):
    """Lambda stops the sandbox."""


def charging(store: Any, effects: list[Any], **options: Any) -> Any:
    @lambda_handler(store=store, operation="charge", key=lambda event: event["order"], **options)
    def handler(event: Any, context: Any) -> dict[str, int]:
        effects.append(event)
        if event.get("fail"):
            raise event["fail"] if isinstance(event["fail"], BaseException) else LookupError
        return {"charge": len(effects)}

    return handler


def test_an_event_that_is_delivered_twice_has_one_effect() -> None:
    effects: list[Any] = []
    handler = charging(SyncMemoryStore(), effects)
    answers = [handler({"order": "o"}, Context()) for _ in range(2)]
    assert answers == [{"charge": 1}, {"charge": 1}]
    with pytest.raises(FingerprintMismatch):
        handler({"order": "o", "cents": 5}, Context())


def test_a_chosen_fingerprint_leaves_out_what_changes_with_each_delivery() -> None:
    effects: list[Any] = []
    handler = charging(SyncMemoryStore(), effects, fingerprint=lambda event: event["order"])
    for attempt in (1, 2):
        handler({"order": "o", "receiveCount": attempt}, Context())
    assert len(effects) == 1


def test_the_key_is_held_as_long_as_the_invocation_may_run_and_a_second() -> None:
    now, effects = [0.0], []
    store = SyncMemoryStore(clock=lambda: now[0])
    killed = True

    @lambda_handler(store=store, operation="charge", key=lambda event: event["order"])
    def handler(event: Any, context: Any) -> str:
        effects.append(event)
        if killed:
            raise Killed
        return "charged"

    with pytest.raises(Killed):
        handler({"order": "o"}, Context(3_000))
    killed = False
    now[0] = 3.9
    with pytest.raises(InProgress):
        handler({"order": "o"}, Context(3_000))
    now[0] = 4.1
    assert handler({"order": "o"}, Context(3_000)) == "charged"
    assert len(effects) == 2


def test_the_policy_says_the_rest() -> None:
    effects: list[Any] = []
    handler = charging(SyncMemoryStore(), effects, policy=Policy(on_exception="keep"))
    event = {"order": "o", "fail": True}
    with pytest.raises(LookupError):
        handler(event, Context())
    with pytest.raises(FirstRunFailed):
        handler(event, Context())
    assert len(effects) == 1
