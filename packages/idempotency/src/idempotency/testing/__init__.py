"""
Tools for tests of idempotent code and of stores: shipped, so that a store of your own passes what ours pass.

Needs the extra `testing` (pytest and Hypothesis).
"""

from __future__ import annotations

from idempotency.testing._assert import Checked, assert_idempotent
from idempotency.testing._clock import Clock, FakeClock, RealClock
from idempotency.testing._contract import StoreContract
from idempotency.testing._faults import Fault
from idempotency.testing._faulty_store import FaultyStore
from idempotency.testing._subject import OpenStore
from idempotency.testing._sync_faulty_store import SyncFaultyStore

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
]
