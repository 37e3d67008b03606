"""
Resets, in a child of `os.fork`, the connections, threads and locks that belong to its parent.

A child shares its parent's sockets, but not its threads, and a lock that such a thread held stays locked in the child
for ever. The owner of a socket, thread or lock registers here how to reset it; the child resets it before it runs
any of its own code.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["forget_in_child"]

T = TypeVar("T")

_registered: WeakKeyDictionary[Any, Callable[[Any], object]] = WeakKeyDictionary()


def forget_in_child(owner: T, forget: Callable[[T], object]) -> None:
    """
    Call *forget* with *owner* in every child that is forked while *owner* lives.

    Args:
        owner: Only a weak reference is kept, so registering does not keep it alive.
        forget: A function that takes the owner, such as `Owner.method`; a bound method would keep the owner alive. It
            runs in the child's only thread and must not use a lock of the parent.
    """
    _registered[owner] = forget


def _forget_all() -> None:
    for owner, forget in list(_registered.items()):
        forget(owner)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forget_all)
