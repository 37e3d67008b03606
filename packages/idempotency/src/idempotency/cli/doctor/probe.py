"""
Checks that a store keeps its rules: two owners, as two processes would, claim, record and replay one key.

The key is under a tenant of the doctor's own, with a random name, and its record is deleted at the end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Final

from idempotency._core.key import storage_key
from idempotency._core.types import Acquired, Completed, Fingerprint, Owner, Reply, Running, StorageKey
from idempotency.cli.doctor.finding import Finding
from idempotency.store import SyncInspectable, SyncStore

__all__ = ["probe"]

_LEASE: Final = 30.0
_PAUSE: Final = 0.25
# A share of the pause: a clock that is 10 % off makes leases 10 % shorter or longer.
_CLOCK_TOLERANCE: Final = 0.1
_SAMPLES: Final = 20
_OUTCOME: Final = b'{"format":1,"outcome":"unreplayable","reason":"doctor","status_code":200}'


def probe(
    store: SyncStore,
    *,
    sleep: Callable[[float], object] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[Finding]:
    """
    Claim, share, record, repeat and forget one key, as two processes would.

    Raises:
        StoreError: From the first call that the store does not answer.
    """
    key = storage_key("idempotency-doctor", os.urandom(8).hex())
    first, second = Owner(os.urandom(16)), Owner(os.urandom(16))

    def acquire(owner: Owner, lease: float = _LEASE) -> Reply:
        fingerprint = Fingerprint(b"doctor")
        return store.acquire(key, fingerprint=fingerprint, owner=owner, lease=lease, retention=_LEASE)

    granted = acquire(first)
    if not isinstance(granted, Acquired):
        yield Finding(
            "claim", "fail", f"a key that nobody has used was not granted: {type(granted).__name__}"
        )
        return
    try:
        yield _one_holder(acquire(second))
        yield _clock(acquire, second, sleep, monotonic)
        if not store.complete(granted.claim, _OUTCOME, retention=_LEASE):
            yield Finding("record", "fail", "the holder of a claim could not record its outcome")
            return
        yield _faithful(acquire(second))
    finally:
        if isinstance(store, SyncInspectable):
            store.forget(key)
        else:
            store.release(granted.claim)
    again = acquire(second)
    if isinstance(again, Acquired):
        store.release(again.claim)
        yield _fence(granted.claim.fence, again.claim.fence)
    yield _latency(store, key, monotonic)


def _one_holder(reply: Reply) -> Finding:
    # More than one lease is allowed, because a store on callers' clocks adds the largest clock skew for others.
    if isinstance(reply, Running) and 0 < reply.lease_left <= 2 * _LEASE:
        return Finding("claim", "ok", "one of two owners gets a key, and the other is told that it is held")
    return Finding(
        "claim", "fail", f"two owners asked for one key, and the reply to the second was {reply!r}"
    )


def _clock(
    acquire: Callable[[Owner], Reply],
    owner: Owner,
    sleep: Callable[[float], object],
    monotonic: Callable[[], float],
) -> Finding:
    """Compares the speed of the store's clock with ours; the time of day does not matter."""
    began = monotonic()
    before = acquire(owner)
    sleep(_PAUSE)
    after = acquire(owner)
    ended = monotonic()
    if not isinstance(before, Running) or not isinstance(after, Running):
        return Finding("clock", "fail", f"a lease of {_LEASE:g} s was over within {ended - began:.2f} s")
    passed = before.lease_left - after.lease_left
    # The store read its clock at an unknown time during each call.
    least, most = _PAUSE, ended - began
    slack = _CLOCK_TOLERANCE * _PAUSE
    if least - slack <= passed <= most + slack:
        return Finding("clock", "ok", f"{passed:.3f} s of a lease passed within {most:.3f} s here")
    return Finding(
        "clock",
        "fail",
        f"{passed:.3f} s of a lease passed in {least:.3f} to {most:.3f} s here: the store's clock was set or runs at "
        "another speed, so leases do not last as long as the policy says",
    )


def _faithful(reply: Reply) -> Finding:
    if isinstance(reply, Completed) and reply.outcome == _OUTCOME and reply.age < _LEASE:
        return Finding("record", "ok", "an outcome is returned byte for byte")
    return Finding("record", "fail", "the outcome returned differs from the outcome recorded")


def _fence(before: int, after: int) -> Finding:
    if after > before:
        return Finding("fence", "ok", "the fence rises when a key is claimed again")
    return Finding(
        "fence", "fail", f"the fence went from {before} to {after}; a resource cannot refuse a stalled owner"
    )


def _latency(store: SyncStore, key: StorageKey, monotonic: Callable[[], float]) -> Finding:
    seconds = []
    for _ in range(_SAMPLES):
        began = monotonic()
        store.get(key)
        seconds.append(monotonic() - began)
    return Finding(
        "latency",
        "info",
        f"a read takes {median(seconds) * 1e3:.3g} ms, at most {max(seconds) * 1e3:.3g} ms of {_SAMPLES}; a replay "
        "costs one call, a first run two",
    )
