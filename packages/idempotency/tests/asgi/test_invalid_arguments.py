"""A wrong argument is refused by the constructor or the decorator, not by the first request."""

from __future__ import annotations

from typing import Any

import pytest
from effects import Charges

from idempotency import IdempotencyMiddleware, Policy, by_header, idempotent, one_tenant
from idempotency.hooks import LoggingHook
from idempotency.stores.memory import MemoryStore, SyncMemoryStore


async def coroutine_function(_: Any) -> Any:
    """Not accepted as tenant, policy or hook: these are called and not awaited."""


def set_up(**wrong: Any) -> IdempotencyMiddleware:
    return IdempotencyMiddleware(Charges(), **{"store": MemoryStore(), "tenant": one_tenant()} | wrong)


@pytest.mark.parametrize(
    "store",
    [SyncMemoryStore(), MemoryStore, "redis://:secret@localhost", None],
)
def test_store_of_the_wrong_type_is_refused_and_not_quoted(store: Any) -> None:
    with pytest.raises(TypeError, match="store must be a Store") as refused:
        set_up(store=store)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("tenant", [coroutine_function, by_header, one_tenant, "Authorization"])
def test_tenant_that_is_not_a_plain_function_is_refused(tenant: Any) -> None:
    with pytest.raises(TypeError, match=r"one_tenant\(\)"):
        set_up(tenant=tenant)


@pytest.mark.parametrize("policy", [coroutine_function, Policy, {"required": True}])
def test_policy_of_the_wrong_type_is_refused(policy: Any) -> None:
    with pytest.raises(TypeError, match="policy must be a Policy"):
        set_up(policy=policy)


@pytest.mark.parametrize("hook", [coroutine_function, LoggingHook, "log"])
def test_hook_that_cannot_handle_events_is_refused(hook: Any) -> None:
    with pytest.raises(TypeError, match="hook"):
        set_up(hooks=[hook])
    with pytest.raises(TypeError, match="hook"):
        idempotent(store=SyncMemoryStore(), operation="o", key=str, hooks=[hook])(lambda key: None)
