"""Errors that the decorator raises when it decorates a function, and options that it accepts."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Coroutine, Generator, Iterator
from datetime import datetime
from typing import Any

import pytest
from decorated import charge

from idempotency import Policy, current_claim, idempotent
from idempotency.errors import FirstRunFailed
from idempotency.stores.memory import MemoryStore, SyncMemoryStore

pytestmark = pytest.mark.anyio


class _CallableObject:
    async def __call__(self, order: str) -> str:
        return order


class TestDecoration:
    """Functions and options that the decorator refuses."""

    def decorate(self, function: Any, *, store: Any = None, **options: Any) -> Any:
        settings: dict[str, Any] = {"operation": "op", "key": lambda *_: "k"}
        return idempotent(store=store or SyncMemoryStore(), **(settings | options))(function)

    def test_store_of_the_other_kind_is_refused(self) -> None:
        async def coroutine(order: str) -> str:
            return order

        with pytest.raises(TypeError, match="`async def` needs a Store, not a SyncMemoryStore"):
            self.decorate(coroutine)
        with pytest.raises(TypeError, match="`def` needs a SyncStore, not a MemoryStore"):
            self.decorate(charge, store=MemoryStore())

    async def test_partials_and_callable_objects_are_treated_as_what_they_call(self) -> None:
        async def coroutine(prefix: str, order: str) -> str:
            return prefix + order

        partial = self.decorate_partial(functools.partial(coroutine, "a"))
        assert await partial("b") == "ab"
        with pytest.raises(TypeError, match="needs a Store"):
            self.decorate(functools.partial(coroutine, "a"))
        with pytest.raises(TypeError, match="needs a Store"):
            self.decorate(_CallableObject())

    def decorate_partial(self, function: Any) -> Any:
        return self.decorate(function, store=MemoryStore())

    def test_generators_are_refused(self) -> None:
        def generator(order: str) -> Any:
            yield order

        async def async_generator(order: str) -> Any:
            yield order

        for function, store in ((generator, SyncMemoryStore()), (async_generator, MemoryStore())):
            with pytest.raises(TypeError, match="return a list"):
                self.decorate(function, store=store)

    @pytest.mark.parametrize(
        "returns",
        [
            Awaitable[int],
            Coroutine[Any, Any, int],
            Iterator[int],
            AsyncIterator[int],
            Generator[int, None, None],
        ],
    )
    def test_return_annotations_of_deferred_work_are_refused(self, returns: Any) -> None:
        def function(order: str) -> Any: ...

        function.__annotations__["return"] = returns
        with pytest.raises(TypeError, match="before its work is done"):
            self.decorate(function)

    def test_decorating_a_staticmethod_object_is_refused(self) -> None:
        with pytest.raises(TypeError, match="below any other decorator"):
            self.decorate(staticmethod(charge))

    def test_empty_operation_name_is_refused(self) -> None:
        with pytest.raises(ValueError, match="operation must be a name"):
            self.decorate(charge, operation="")

    def test_key_that_is_not_a_plain_function_is_refused(self) -> None:
        async def key(order: str) -> str:
            return order

        for wrong in (key, "order"):
            with pytest.raises(TypeError, match="key= must be a plain function"):
                self.decorate(charge, key=wrong)

    def test_fingerprint_that_is_not_a_plain_function_is_refused(self) -> None:
        async def fingerprint(order: str) -> str:
            return order

        for wrong in (fingerprint, b"order"):
            with pytest.raises(TypeError, match="fingerprint= must be a plain function"):
                self.decorate(charge, fingerprint=wrong)

    def test_return_annotation_that_json_would_change_is_refused(self) -> None:
        def when(order: str) -> datetime: ...

        with pytest.raises(TypeError, match="datetime does not come back from JSON"):
            self.decorate(when)

    def test_method_can_be_decorated_with_key_and_fingerprint_functions(self) -> None:
        class Till:
            runs = 0

            @idempotent(
                store=SyncMemoryStore(),
                operation="charge",
                key=lambda self, order: order,
                fingerprint=lambda self, order: order,
            )
            def charge(self, order: str) -> int:
                self.runs += 1
                return self.runs

        till = Till()
        assert (till.charge("o-1"), till.charge("o-1"), till.charge("o-2")) == (1, 1, 2)


def test_policy_function_gets_the_arguments() -> None:
    seen: list[float] = []

    class Store(SyncMemoryStore):
        def acquire(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(kwargs["lease"])
            return super().acquire(*args, **kwargs)

    runs: list[str] = []

    @idempotent(
        store=Store(),
        operation="charge",
        key=lambda name, lease: name,
        fingerprint=lambda name, lease: name,
        policy=lambda name, lease: Policy(lease=lease, on_exception="keep" if name == "once" else "release"),
    )
    def charge(name: str, lease: float) -> str:
        runs.append(name)
        if name != "fine":
            raise LookupError
        claim = current_claim()
        assert claim is not None
        return name

    assert [charge("fine", 7.0), charge("fine", 9.0)] == ["fine", "fine"]
    with pytest.raises(LookupError):
        charge("once", 5.0)
    with pytest.raises(FirstRunFailed):
        charge("once", 5.0)
    for _ in range(2):
        with pytest.raises(LookupError):
            charge("again", 5.0)
    assert seen[:2] == [7.0, 9.0]
    assert runs == ["fine", "once", "again", "again"]


@pytest.mark.parametrize("policy", ["at_most_once", Policy, None])
def test_policy_option_of_another_type_is_refused(policy: Any) -> None:
    with pytest.raises(TypeError, match="policy="):
        idempotent(store=SyncMemoryStore(), operation="charge", key=lambda: "k", policy=policy)


def test_policy_function_that_returns_no_policy_is_an_error_before_the_run() -> None:
    runs: list[int] = []

    @idempotent(store=SyncMemoryStore(), operation="charge", key=lambda: "k", policy=lambda: None)  # type: ignore[arg-type, return-value]
    def charge() -> None:
        runs.append(1)

    with pytest.raises(TypeError, match="must return a Policy"):
        charge()
    assert runs == []
