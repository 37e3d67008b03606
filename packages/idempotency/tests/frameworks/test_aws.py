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


def make_handler(store: Any, effects: list[Any], **options: Any) -> Any:
    @lambda_handler(store=store, operation="charge", key=lambda event: event["order"], **options)
    def handler(event: Any, context: Any) -> dict[str, int]:
        effects.append(event)
        if event.get("fail"):
            raise event["fail"] if isinstance(event["fail"], BaseException) else LookupError
        return {"charge": len(effects)}

    return handler


def test_an_event_delivered_twice_has_one_effect() -> None:
    effects: list[Any] = []
    handler = make_handler(SyncMemoryStore(), effects)
    answers = [handler({"order": "o"}, Context()) for _ in range(2)]
    assert answers == [{"charge": 1}, {"charge": 1}]
    with pytest.raises(FingerprintMismatch):
        handler({"order": "o", "cents": 5}, Context())


def test_a_custom_fingerprint_ignores_fields_that_change_with_each_delivery() -> None:
    effects: list[Any] = []
    handler = make_handler(SyncMemoryStore(), effects, fingerprint=lambda event: event["order"])
    for attempt in (1, 2):
        handler({"order": "o", "receiveCount": attempt}, Context())
    assert len(effects) == 1


def test_the_lease_is_the_remaining_time_of_the_invocation_plus_one_second() -> None:
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


def test_on_exception_keep_replays_the_failure_of_the_first_run() -> None:
    effects: list[Any] = []
    handler = make_handler(SyncMemoryStore(), effects, policy=Policy(on_exception="keep"))
    event = {"order": "o", "fail": True}
    with pytest.raises(LookupError):
        handler(event, Context())
    with pytest.raises(FirstRunFailed):
        handler(event, Context())
    assert len(effects) == 1


@pytest.mark.parametrize("milliseconds", [0, -3_000])
def test_the_lease_of_an_invocation_without_time_left_is_one_second(milliseconds: int) -> None:
    now, effects = [0.0], []

    @lambda_handler(
        store=SyncMemoryStore(clock=lambda: now[0]), operation="charge", key=lambda event: event["order"]
    )
    def handler(event: Any, context: Any) -> None:
        effects.append(event)
        raise Killed

    for moment, error in ((0.0, Killed), (0.9, InProgress), (1.1, Killed)):
        now[0] = moment
        with pytest.raises(error):
            handler({"order": "o"}, Context(milliseconds))
    assert len(effects) == 2


def test_event_and_context_may_be_keyword_arguments() -> None:
    effects: list[Any] = []
    handler = make_handler(SyncMemoryStore(), effects)
    event = {"order": "o"}
    assert handler(event=event, context=Context()) == handler(event, Context()) == {"charge": 1}


def test_a_call_without_a_context_raises_type_error_unless_protection_is_off() -> None:
    effects: list[Any] = []
    handler = make_handler(SyncMemoryStore(), effects)
    with pytest.raises(TypeError, match="protection_off"):
        handler({"order": "o"}, None)
    with protection_off():
        assert handler({"order": "o"}, None) == {"charge": 1}


@pytest.mark.parametrize("shape", ["stars", "rest", "default"])
def test_a_handler_may_take_event_and_context_as_any_kind_of_parameter(shape: str) -> None:
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


def test_a_renewal_does_not_extend_the_lease_past_the_invocation(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary renewal, at a third of the lease, would add that third to the lease."""
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


def test_the_lease_of_a_batch_record_is_the_time_that_the_invocation_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, due = [0.0], list[Any]()
    monkeypatch.setattr(Scheduler, "after", lambda _, seconds, job: due.append(job))
    store = SyncMemoryStore(clock=lambda: now[0])
    effects: list[Any] = []
    kill = True

    class ElapsingContext(Context):
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
        batch(ElapsingContext(10_000))
    kill = False
    now[0] = 10.9
    with pytest.raises(InProgress):
        batch(ElapsingContext(30_000))
    now[0] = 11.1
    batch(ElapsingContext(30_000))
    assert effects == ["first", "second", "second"]
