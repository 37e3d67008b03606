"""Every interleaving of duplicates, faults, crashes and ending leases keeps the invariants; mutants do not."""

from __future__ import annotations

import pytest
from interleaving_scenarios import MUTANTS, SCENARIOS
from interleavings import Client, Found, Violated, World, explore

from idempotency import Policy


@pytest.fixture(scope="module")
def found() -> dict[str, Found]:
    return {}


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_interleaving_keeps_the_invariants(name: str, found: dict[str, Found]) -> None:
    found[name] = SCENARIOS[name].explore()
    assert found[name].states > 5_000  # an explorer that stops early would find no violation
    assert found[name].schedules > 1_000_000  # the states are reached in many orders


def test_scenarios_reach_every_kind_of_step_and_verdict(found: dict[str, Found]) -> None:
    for name in SCENARIOS.keys() - found.keys():  # run alone, or on another worker
        found[name] = SCENARIOS[name].explore()
    assert set().union(*(exploration.reached for exploration in found.values())) >= {
        "runs",
        "replays",
        "answers, recorded",
        "answers, Forgotten",
        "answers, Unrecorded",
        "answers with its successor's",
        "refuses InProgress",
        "refuses FingerprintMismatch",
        "refuses OutcomeUnknown",
        "refuses StoreUnavailable",
        "ReleaseLater",
        "crashes",
        "raised",
        "commits",
        "commits, reply lost",
        "rolls back, superseded",
    }


def test_explorer_counts_complete_schedules() -> None:
    lone = World((Client(b"f"),))
    assert explore(lone, Policy()).schedules == 1
    # One crash, before any of its five steps: the claim, the verdict, the effect, the record, the ending.
    assert explore(lone._replace(crashes_left=1), Policy()).schedules == 6


@pytest.mark.parametrize("name", MUTANTS)
def test_explorer_catches_every_mutant_of_the_core(name: str) -> None:
    scenario, core = MUTANTS[name]
    with pytest.raises(Violated):
        SCENARIOS[scenario].explore(core)
