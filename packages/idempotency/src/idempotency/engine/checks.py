"""Refuses stores and hooks of the wrong kind at construction, not at the first request."""

from __future__ import annotations

from collections.abc import Sequence

from idempotency._core.callables import is_async, is_plain
from idempotency.events import Hook

__all__ = ["checked_hooks", "is_async_store"]


def is_async_store(store: object) -> bool:
    """Whether *store* is a `Store`: it has `aclose` but not `close`; if it has both or neither, `acquire` decides."""
    has_aclose, has_close = hasattr(store, "aclose"), hasattr(store, "close")
    return is_async(getattr(store, "acquire", None)) if has_aclose == has_close else has_aclose


def checked_hooks(hooks: Sequence[Hook]) -> tuple[Hook, ...]:
    """
    *hooks* as a tuple. A coroutine function is refused, since calling it would do nothing.

    Raises:
        TypeError: A hook is a class, a coroutine function or not callable.
    """
    for hook in tuple(hooks):
        if not is_plain(hook):
            raise TypeError(
                "a hook must be a plain function that takes an event, or an object that can be called like one, "
                f"not {hook!r}"
            )
    return tuple(hooks)
