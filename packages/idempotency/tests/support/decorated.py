"""A decorated function, async or sync, over a store of the same kind, called in one way."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

from idempotency import (
    idempotent,
    storage_key,
)
from idempotency.events import Event
from idempotency.stores.memory import MemoryStore, SyncMemoryStore
from idempotency.testing import FakeClock


class Harness:
    """Decorates functions of one kind, async or sync, over a store of that kind; `call` is the same for both."""

    def __init__(self, kind: Literal["async", "sync"]) -> None:
        self.kind = kind
        self.clock = FakeClock()
        self.store: Any = (
            MemoryStore(clock=self.clock) if kind == "async" else SyncMemoryStore(clock=self.clock)
        )
        self.events: list[Event] = []
        self.runs: list[Any] = []

    def guard(self, body: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """*body* as a decorated function of this kind; the arguments of each run are in `runs`."""
        if self.kind == "async":

            @functools.wraps(body)
            async def function(*args: Any, **kwargs: Any) -> Any:
                self.runs.append(args)
                return body(*args, **kwargs)
        else:

            @functools.wraps(body)
            def function(*args: Any, **kwargs: Any) -> Any:
                self.runs.append(args)
                return body(*args, **kwargs)

        settings: dict[str, Any] = {
            "store": self.store,
            "operation": "charge",
            "key": lambda order, *_, **__: order,
        }
        return idempotent(**(settings | {"hooks": (self.events.append,)} | options))(function)

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        answer = function(*args, **kwargs)
        return await answer if inspect.isawaitable(answer) else answer

    async def record(self, order: str = "o-1", operation: str = "charge") -> Any:
        found = self.store.get(storage_key(operation, order))
        return await found if inspect.isawaitable(found) else found


def charge(order: str, cents: int = 100) -> dict[str, Any]:
    return {"order": order, "cents": cents}
