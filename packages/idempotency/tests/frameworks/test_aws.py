"""Lambda handlers: the lease is the time that the invocation has left."""

from __future__ import annotations

from typing import Any

import pytest

from idempotency import Policy
from idempotency.aws import lambda_handler
from idempotency.engine.scheduler import Scheduler
from idempotency.errors import FingerprintMismatch, FirstRunFailed, InProgress
from idempotency.stores.memory import SyncMemoryStore
from idempotency.testing import protection_off


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


@pytest.mark.parametrize("milliseconds", [0, -3_000])
def test_an_invocation_without_time_left_holds_its_key_for_the_margin(milliseconds: int) -> None:
    now, effects = [0.0], []

    @lambda_handler(
        store=SyncMemoryStore(clock=lambda: now[0]), operation="charge", key=lambda event: event["order"]
    )
    def handler(event: Any, context: Any) -> None:
        effects.append(event)
        raise Killed

    for moment in (0.0, 1.1):
        now[0] = moment
        with pytest.raises(Killed):
            handler({"order": "o"}, Context(milliseconds))
    assert len(effects) == 2


def test_arguments_may_be_given_by_name() -> None:
    effects: list[Any] = []
    handler = charging(SyncMemoryStore(), effects)
    event = {"order": "o"}
    assert handler(event=event, context=Context()) == handler(event, Context()) == {"charge": 1}


def test_a_call_without_a_context_says_what_is_missing() -> None:
    effects: list[Any] = []
    handler = charging(SyncMemoryStore(), effects)
    with pytest.raises(TypeError, match="protection_off"):
        handler({"order": "o"}, None)
    with protection_off():
        assert handler({"order": "o"}, None) == {"charge": 1}


@pytest.mark.parametrize("shape", ["stars", "rest", "default"])
def test_a_handler_takes_event_and_context_in_any_way(shape: str) -> None:
    effects: list[Any] = []

    def stars(*args: Any, **kwargs: Any) -> int:
        effects.append(args)
        return len(effects)

    def rest(event: Any, *others: Any) -> int:
        return stars(event, *others)

    def default(event: Any, context: Any = None) -> int:
        return stars(event, context)

    made = {"stars": stars, "rest": rest, "default": default}[shape]
    handler = lambda_handler(store=SyncMemoryStore(), operation="charge", key=lambda event: event["order"])(
        made
    )
    assert [handler({"order": "o"}, Context()) for _ in range(2)] == [1, 1]
    if shape == "default":
        with pytest.raises(TypeError, match="protection_off"):
            handler({"order": "p"})


def test_a_renewal_does_not_hold_the_key_longer_than_the_invocation(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would come every third of the lease, and make it last that much longer than the handler."""
    now, due = [0.0], list[Any]()
    monkeypatch.setattr(Scheduler, "after", lambda _, seconds, job: due.append(job))
    store = SyncMemoryStore(clock=lambda: now[0])

    @lambda_handler(store=store, operation="charge", key=lambda event: event["order"])
    def handler(event: Any, context: Any) -> float:
        now[0] = 2.0
        assert due, "the engine wants to renew"
        for job in due[:]:
            job()
        [record] = store.scan().records
        return record.lease_left

    assert handler({"order": "o"}, Context(3_000)) == pytest.approx(2.0)


def test_a_record_of_a_batch_is_held_for_what_the_invocation_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, due = [0.0], list[Any]()
    monkeypatch.setattr(Scheduler, "after", lambda _, seconds, job: due.append(job))
    store = SyncMemoryStore(clock=lambda: now[0])
    effects: list[Any] = []
    kill = True

    class Running(Context):  # for 10 s
        def get_remaining_time_in_millis(self) -> int:
            return self.milliseconds - int(now[0] * 1000)

    @lambda_handler(store=store, operation="charge-record", key=lambda record: record["order"])
    def charge(record: Any, context: Any) -> None:
        effects.append(record["order"])
        now[0] += 4.0
        for job in due[:]:
            job()
        if kill and len(effects) == 2:
            raise Killed

    def batch(context: Context) -> None:
        for order in ("first", "second"):
            charge({"order": order}, context)

    with pytest.raises(Killed):
        batch(Running(10_000))
    kill = False
    now[0] = 10.9
    with pytest.raises(InProgress):
        batch(Running(30_000))
    now[0] = 11.1
    batch(Running(30_000))
    assert effects == ["first", "second", "second"]
