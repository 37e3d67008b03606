"""
Resets, in a child of `os.fork`, the connections, threads and locks that belong to its parent.

A socket is shared with the parent, a thread exists in the parent alone, and a lock may be held by such a thread for
ever. Whoever owns one registers here how to start anew, and the child does so before any of its own code runs.
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
        owner: Kept by a weak reference only, so that registering it does not keep it alive.
        forget: A function that takes the owner, such as the plain function of one of its methods; a bound method
            would keep the owner alive. It runs in the child's only thread. It must not use a lock of the parent.
    """
    _registered[owner] = forget


def _forget_all() -> None:
    for owner, forget in list(_registered.items()):
        forget(owner)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forget_all)
