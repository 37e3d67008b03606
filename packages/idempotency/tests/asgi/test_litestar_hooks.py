"""A `before_send` hook of Litestar's that commits: what becomes of the key if the commit fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import litestar
import pytest
from asgi_driver import call
from litestar.exceptions import LitestarException
from litestar.middleware import DefineMiddleware

from idempotency import IdempotencyMiddleware, Policy, one_tenant
from idempotency.asgi import LateClaim, claim, litestar_hooks
from idempotency.events import Event, FailedAfterRecord
from idempotency.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _warned_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litestar_hooks, "_warned", False)


class Shop:
    """An application whose orders are committed by a hook, the first of which fails."""

    def __init__(self, policy: Policy = Policy(), *, late: bool = True) -> None:  # noqa: B008
        self.rows = 0
        self.failing = True
        self.events: list[Event] = []
        self._uncommitted = 0

        @litestar.post("/orders")
        async def order(request: litestar.Request[Any, Any, Any]) -> str:
            if late:
                await claim(request.scope, "alice", policy)
            self._uncommitted = 1
            return "ordered"

        self.order = order

    async def commit(self, message: Any, _scope: Any) -> None:
        if message["type"] == "http.response.start" and self._uncommitted:
            uncommitted, self._uncommitted = self._uncommitted, 0
            if self.failing:
                self.failing = False
                raise LookupError("the commit failed")
            self.rows += uncommitted

    def app(self, *middleware: Any, hooks: bool = True) -> Any:
        before_send: list[Any] = [self.commit] if hooks else []
        return litestar.Litestar(
            [self.order],
            middleware=middleware,
            before_send=before_send,
            logging_config=None,
            openapi_config=None,
        )

    def inside(self) -> Any:
        """With the middleware in Litestar."""
        return self.app(DefineMiddleware(LateClaim, store=MemoryStore(), hooks=[self.events.append]))

    def around(self) -> Any:
        """With the middleware around it."""
        return LateClaim(self.app(), store=MemoryStore(), hooks=[self.events.append])


FAILED = (LookupError, LitestarException)  # what the hook raises, or what Litestar makes of it
RECORDS = pytest.mark.parametrize("record", ["answer", "return"])


@RECORDS
async def test_around_litestar_a_commit_that_fails_frees_the_key(record: Any) -> None:
    shop = Shop(Policy(record=record))
    app = shop.around()
    with pytest.raises(FAILED):
        await call(app, path="/orders", key="k")
    second, third = await call(app, path="/orders", key="k"), await call(app, path="/orders", key="k")
    assert (second.status, second.replayed, third.replayed, shop.rows) == (201, False, True, 1)
    assert not any(isinstance(event, FailedAfterRecord) for event in shop.events)


@RECORDS
async def test_in_litestar_the_failure_comes_after_the_record_and_is_reported(
    record: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop(Policy(record=record))
    app = shop.inside()
    with pytest.raises(FAILED):
        await call(app, path="/orders", key="k")
    assert any(isinstance(event, FailedAfterRecord) for event in shop.events)
    [warning] = [told for told in caplog.records if told.levelno == logging.WARNING]
    assert "LateClaim(app, store=store) around Litestar" in warning.getMessage()


def early(shop: Shop) -> Any:
    return shop.app(DefineMiddleware(IdempotencyMiddleware, store=MemoryStore(), tenant=one_tenant()))


@pytest.mark.parametrize("build", [Shop.inside, early])
async def test_hooks_outside_of_the_middleware_are_warned_of_once(
    build: Callable[[Shop], Any], caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop(late=build is not early)
    shop.failing = False
    app = build(shop)
    await call(app, path="/orders")
    assert not caplog.records, "nothing is recorded without a key"
    for key in ("a", "b"):
        assert (await call(app, path="/orders", key=key)).status == 201
    assert len([told for told in caplog.records if told.levelno == logging.WARNING]) == 1


async def test_where_no_hook_is_outside_nothing_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop()
    shop.failing = False
    within = shop.app(DefineMiddleware(LateClaim, store=MemoryStore()), hooks=False)
    for app in (within, shop.around()):
        assert (await call(app, path="/orders", key="k")).status == 201
    assert [told for told in caplog.records if told.levelno >= logging.WARNING] == []
