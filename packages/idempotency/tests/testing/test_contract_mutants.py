"""The store contract fails wrong stores: each mutant of the memory store breaks one rule, and is caught."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from idempotency import Acquired, Claim, Fingerprint, StorageKey
from idempotency.store import SyncStore
from idempotency.stores import memory
from idempotency.testing import Clock, FakeClock, StoreContract
from idempotency.testing._machine import machine
from idempotency.testing._subject import open_subject

MUTANTS = {
    "an expired record is never absent": (
        "if entry is None or now >= entry.expires_at:\n                if",
        "if entry is None:\n                if",
    ),
    "a record outlives its last instant": (
        "if entry is None or now >= entry.expires_at:\n                if",
        "if entry is None or now > entry.expires_at:\n                if",
    ),
    "a lease outlives its last instant": ("if now < entry.until:", "if now <= entry.until:"),
    "a live lease is taken over": ("if now < entry.until:", "if False:"),
    "a lapsed lease is never taken over": ("if now < entry.until:", "if True:"),
    "a takeover ignores the fingerprint": (
        "if not takeover or entry.fingerprint != fingerprint:",
        "if not takeover:",
    ),
    "a takeover ignores that it is forbidden": (
        "if not takeover or entry.fingerprint != fingerprint:",
        "if entry.fingerprint != fingerprint:",
    ),
    "a takeover is not counted": ("entry.attempt += 1", "pass"),
    "a takeover keeps the fence": ("self._fence = entry.fence = self._fence + 1", "pass"),
    "a takeover keeps the old retention": ("            entry.retention = retention\n", ""),
    "a takeover keeps the old end of the record": (
        "            entry.expires_at = entry.until + retention\n",
        "",
    ),
    "a first grant restarts the fence": ("self._fence = fence = self._fence + 1", "fence = 1"),
    "an owner does not know its own claim": ("if entry.owner == owner:", "if False:"),
    "an owner asking again is not given its lease": ("                _push(entry, now + lease)\n", ""),
    "a refused takeover shows a negative lease": (
        "return Running(entry.fingerprint, 0.0)",
        "return Running(entry.fingerprint, entry.until - now)",
    ),
    "anybody may write": ("or entry.owner != claim.owner", ""),
    "only the right fence may write": ("or entry.owner != claim.owner", "or entry.fence != claim.fence"),
    "an expired claim may write": (
        "entry.owner != claim.owner or now >= entry.expires_at",
        "entry.owner != claim.owner",
    ),
    "a late owner may not complete": (
        "if entry is None:\n                return False\n            if entry.outcome",
        "if entry is None or now >= entry.until:\n                return False\n            if entry.outcome",
    ),
    "a repeated complete overwrites": (
        "            return True\n\n    def release",
        "            entry.outcome = outcome\n            return True\n\n    def release",
    ),
    "a repeated complete is refused": (
        "            return True\n\n    def release",
        "            return entry.outcome is outcome\n\n    def release",
    ),
    "completion does not start a retention": ("                entry.expires_at = now + retention\n", ""),
    "a completed claim may be renewed": (
        "if entry is None or entry.outcome is not None:\n                return False\n            _push",
        "if entry is None:\n                return False\n            _push",
    ),
    "a completed record may be released": (
        "if entry is None or entry.outcome is not None:\n                return False\n            self._remove",
        "if entry is None:\n                return False\n            self._remove",
    ),
    "renewal shortens": ("    if until > entry.until:\n", "    if until:\n"),
    "renewal does not move the end of the record": (
        "        entry.expires_at = until + entry.retention",
        "        pass",
    ),
    "a running record dies with its lease": (
        "owner, fence, now, lease, retention)",
        "owner, fence, now, lease, 0.0)",
    ),
    "a replay extends the record": (
        "if entry.outcome is not None:\n                age",
        "if entry.outcome is not None:\n                entry.expires_at += 1\n                age",
    ),
    "an expired record is still shown": (
        "if entry is not None and now < entry.expires_at else",
        "if entry is not None else",
    ),
}


def mutated(old: str, new: str) -> ModuleType:
    source = inspect.getsource(memory)
    assert source.count(old) == 1 or old == new, f"{source.count(old)} places to mutate, not one: {old}"
    module = sys.modules["mutant"] = ModuleType("mutant")  # where dataclasses looks up annotations
    exec(compile(source.replace(old, new), "mutant.py", "exec"), module.__dict__)
    return module


def contract_of(module: ModuleType) -> StoreContract:
    class Contract(StoreContract):
        @contextmanager
        def open_store(self, clock: Clock) -> Iterator[SyncStore]:
            yield module.SyncMemoryStore(clock=clock)

    return Contract()


def first_broken_rule(contract: StoreContract) -> str | None:
    for name in sorted(name for name in dir(contract) if name.startswith("test_r")):
        clock = FakeClock()
        with open_subject(contract.open_store(clock), clock) as subject:
            try:
                getattr(contract, name)(subject)
            except Exception:
                return name
    return None


def history_is_broken(contract: StoreContract) -> bool:
    clock = FakeClock()
    with open_subject(contract.open_store(clock), clock) as subject:
        try:
            run_state_machine_as_test(
                machine(subject),
                settings=settings(
                    max_examples=120,
                    stateful_step_count=40,
                    deadline=None,
                    database=None,
                    derandomize=True,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                ),
            )
        except Exception:
            return True
    return False


@pytest.mark.parametrize("name", MUTANTS)
def test_a_rules_own_test_catches_the_mutant(name: str) -> None:
    assert first_broken_rule(contract_of(mutated(*MUTANTS[name]))) is not None


# Rare in a random history: a takeover with another retention, then a renewal, then a read before the record is settled.
RARE = {"a takeover keeps the old retention"}


@pytest.mark.parametrize("name", sorted(MUTANTS.keys() - RARE))
def test_random_histories_catch_the_mutant(name: str) -> None:
    assert history_is_broken(contract_of(mutated(*MUTANTS[name])))


# What a database does to values if its columns have the wrong types.


def unchanged(anything: Any) -> Any:
    return anything


COLUMNS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "keys are compared without their case": {"key": lambda key: StorageKey(key.lower())},
    "keys are cut": {"key": lambda key: StorageKey(key[:255])},
    "fingerprints are text": {
        "fingerprint": lambda value: Fingerprint(value.decode(errors="replace").encode())
    },
    "fingerprints are cut": {"fingerprint": lambda value: Fingerprint(value[:16])},
    "outcomes are cut": {"outcome": lambda outcome: outcome[:65_535]},
}


class LossyStore:
    """A memory store behind columns that change the values that they store."""

    def __init__(
        self,
        clock: Clock,
        *,
        key: Callable[[Any], Any] = unchanged,
        fingerprint: Callable[[Any], Any] = unchanged,
        outcome: Callable[[Any], Any] = unchanged,
    ) -> None:
        self._store = memory.SyncMemoryStore(clock=clock)
        self._key, self._fingerprint, self._outcome = key, fingerprint, outcome

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def acquire(self, key: StorageKey, *, fingerprint: Fingerprint, **rest: Any) -> Any:
        reply = self._store.acquire(self._key(key), fingerprint=self._fingerprint(fingerprint), **rest)
        return Acquired(reply.claim._replace(key=key)) if isinstance(reply, Acquired) else reply

    def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        claim = claim._replace(key=self._key(claim.key))
        return self._store.complete(claim, self._outcome(outcome), retention=retention)


@pytest.mark.parametrize("name", COLUMNS)
def test_the_tests_of_r1_catch_a_lossy_column(name: str) -> None:
    class LossyContract(StoreContract):
        @contextmanager
        def open_store(self, clock: Clock) -> Iterator[SyncStore]:
            yield LossyStore(clock, **COLUMNS[name])

    assert (first_broken_rule(LossyContract()) or "").startswith("test_r1_")


def test_the_unchanged_store_breaks_no_rule() -> None:
    contract = contract_of(mutated("", ""))
    assert first_broken_rule(contract) is None
    assert not history_is_broken(contract)
