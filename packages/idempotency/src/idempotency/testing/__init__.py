"""
Tools to test idempotent code and stores. Your own store can run the same contract tests as the stores of this library.

`StoreContract` needs the extra `testing` (pytest and Hypothesis); the other tools need no extra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idempotency._runtime.extras import missing
from idempotency.testing._assert import Checked, assert_idempotent
from idempotency.testing._clock import Clock, FakeClock, RealClock
from idempotency.testing._faults import Fault
from idempotency.testing._faulty_store import FaultyStore
from idempotency.testing._overrides import protection_off, swapped_stores
from idempotency.testing._subject import OpenStore
from idempotency.testing._sync_faulty_store import SyncFaultyStore

if TYPE_CHECKING:
    from idempotency.testing._contract import StoreContract

__all__ = [
    "Checked",
    "Clock",
    "FakeClock",
    "Fault",
    "FaultyStore",
    "OpenStore",
    "RealClock",
    "StoreContract",
    "SyncFaultyStore",
    "assert_idempotent",
    "protection_off",
    "swapped_stores",
]


def __getattr__(name: str) -> Any:
    # Imported only when it is used, because tests of an application need neither Hypothesis nor pytest.
    if name != "StoreContract":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from idempotency.testing._contract import StoreContract
    except ModuleNotFoundError as error:
        raise missing("testing", "StoreContract", error) from error
    return StoreContract
