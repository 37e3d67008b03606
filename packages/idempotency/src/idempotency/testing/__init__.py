"""
Tools for tests of idempotent code and of stores: shipped, so that a store of your own passes what ours pass.

Needs the extra `testing` (pytest and Hypothesis).
"""

from __future__ import annotations

from idempotency.testing._clock import Clock, FakeClock, RealClock
from idempotency.testing._contract import StoreContract
from idempotency.testing._subject import OpenStore

__all__ = ["Clock", "FakeClock", "OpenStore", "RealClock", "StoreContract"]
