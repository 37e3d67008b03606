"""A middleware or an engine that is set up wrongly says so at once, and not at its first request, or never."""

from __future__ import annotations

from typing import Any

import pytest
from effects import Charges

from idempotency import IdempotencyMiddleware, Policy, by_header, idempotent, one_tenant
from idempotency.hooks import LoggingHook
from idempotency.stores.memory import MemoryStore, SyncMemoryStore


async def later(_: Any) -> Any:
    """No tenant, policy or hook: nobody awaits it."""


def set_up(**wrong: Any) -> IdempotencyMiddleware:
    return IdempotencyMiddleware(Charges(), **{"store": MemoryStore(), "tenant": one_tenant()} | wrong)


@pytest.mark.parametrize(
    "store",
    [SyncMemoryStore(), MemoryStore, "redis://:secret@localhost", None],
)
def test_anything_but_a_store_is_refused_and_not_quoted(store: Any) -> None:
    with pytest.raises(TypeError, match="store must be a Store") as refused:
        set_up(store=store)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("tenant", [later, by_header, one_tenant, "Authorization"])
def test_a_tenant_that_cannot_be_asked_is_refused(tenant: Any) -> None:
    with pytest.raises(TypeError, match=r"one_tenant\(\)"):
        set_up(tenant=tenant)


@pytest.mark.parametrize("policy", [later, Policy, {"required": True}])
def test_a_policy_option_that_is_no_policy_is_refused(policy: Any) -> None:
    with pytest.raises(TypeError, match="policy must be a Policy"):
        set_up(policy=policy)


@pytest.mark.parametrize("hook", [later, LoggingHook, "log"])
def test_a_hook_that_would_do_nothing_is_refused(hook: Any) -> None:
    with pytest.raises(TypeError, match="hook"):
        set_up(hooks=[hook])
    with pytest.raises(TypeError, match="hook"):
        idempotent(store=SyncMemoryStore(), operation="o", key=str, hooks=[hook])(lambda key: None)
