"""A commit in a `before_send` hook of Litestar fails: the key is freed, or the failure is reported."""

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
def _reset_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litestar_hooks, "_warned", False)


class Shop:
    """An application whose orders are committed by a hook; the first commit fails."""

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
        """The application with the middleware inside Litestar."""
        return self.app(DefineMiddleware(LateClaim, store=MemoryStore(), hooks=[self.events.append]))

    def around(self) -> Any:
        """The application with the middleware around Litestar."""
        return LateClaim(self.app(), store=MemoryStore(), hooks=[self.events.append])


FAILED = (LookupError, LitestarException)  # the hook's error, or the one into which Litestar turns it
RECORDS = pytest.mark.parametrize("record", ["answer", "return"])


@RECORDS
async def test_commit_failure_frees_the_key_if_the_middleware_is_outside_litestar(record: Any) -> None:
    shop = Shop(Policy(record=record))
    app = shop.around()
    with pytest.raises(FAILED):
        await call(app, path="/orders", key="k")
    second, third = await call(app, path="/orders", key="k"), await call(app, path="/orders", key="k")
    assert (second.status, second.replayed, third.replayed, shop.rows) == (201, False, True, 1)
    assert not any(isinstance(event, FailedAfterRecord) for event in shop.events)


@RECORDS
async def test_commit_failure_is_reported_after_the_record_if_the_middleware_is_inside_litestar(
    record: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop(Policy(record=record))
    app = shop.inside()
    with pytest.raises(FAILED):
        await call(app, path="/orders", key="k")
    assert any(isinstance(event, FailedAfterRecord) for event in shop.events)
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "LateClaim(app, store=store) around Litestar" in warning.getMessage()


def early(shop: Shop) -> Any:
    return shop.app(DefineMiddleware(IdempotencyMiddleware, store=MemoryStore(), tenant=one_tenant()))


@pytest.mark.parametrize("build", [Shop.inside, early])
async def test_before_send_hooks_outside_the_middleware_are_warned_about_once(
    build: Callable[[Shop], Any], caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop(late=build is not early)
    shop.failing = False
    app = build(shop)
    await call(app, path="/orders")
    assert not caplog.records, "nothing is recorded without a key"
    for key in ("a", "b"):
        assert (await call(app, path="/orders", key=key)).status == 201
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


async def test_no_warning_without_before_send_hooks_outside_the_middleware(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shop = Shop()
    shop.failing = False
    within = shop.app(DefineMiddleware(LateClaim, store=MemoryStore()), hooks=False)
    for app in (within, shop.around()):
        assert (await call(app, path="/orders", key="k")).status == 201
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
