"""Every interleaving of duplicates, faults, crashes and lapsing leases keeps the promises; broken cores do not."""

from __future__ import annotations

import pytest
from interleaving_scenarios import MUTANTS, SCENARIOS
from interleavings import Client, Found, Violated, World, explore

from idempotency import Policy


@pytest.fixture(scope="module")
def found() -> dict[str, Found]:
    return {}


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_interleaving_keeps_the_promise(name: str, found: dict[str, Found]) -> None:
    found[name] = SCENARIOS[name].explore()
    assert found[name].states > 5_000  # an explorer that goes nowhere finds nothing
    assert found[name].schedules > 1_000_000  # the states are met in many orders


def test_the_scenarios_reach_every_way_an_answer_can_end(found: dict[str, Found]) -> None:
    for name in SCENARIOS.keys() - found.keys():  # run alone, or on another worker
        found[name] = SCENARIOS[name].explore()
    assert set().union(*(one.reached for one in found.values())) >= {
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


def test_schedules_are_counted_as_the_ways_through() -> None:
    lone = World((Client(b"f"),))
    assert explore(lone, Policy()).schedules == 1
    # One crash, before any of its five steps: the claim, the verdict, the effect, the record, the ending.
    assert explore(lone._replace(crashes_left=1), Policy()).schedules == 6


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_core_is_found_out(name: str) -> None:
    scenario, core = MUTANTS[name]
    with pytest.raises(Violated):
        SCENARIOS[scenario].explore(core)
