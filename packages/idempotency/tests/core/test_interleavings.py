"""Every interleaving of twins, faults, crashes and lapsing leases keeps the promises; broken cores do not."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest
from interleavings import Client, Found, Violated, World, explore

from idempotency import Policy
from idempotency._core import decide as decide_module
from idempotency._core import machine as machine_module

AT_LEAST = Policy(wait=1.0)
AT_MOST = Policy.at_most_once(wait=1.0)
TWINS = (Client(b"f"), Client(b"f"))

SCENARIOS = {
    "three twins, a crash and a lapse": (
        World((*TWINS, Client(b"f")), crashes_left=1, lapses_left=1),
        AT_LEAST,
    ),
    "twins, three lost replies and a lapse": (World(TWINS, faults_left=3, lapses_left=1), AT_LEAST),
    "twins, a stall, a lost reply and a handler that raises": (
        World(TWINS, faults_left=1, lapses_left=2, raises_left=1),
        AT_LEAST,
    ),
    "twins, a lost record, a lapse and a lost reply": (
        World(TWINS, losses_left=1, lapses_left=1, faults_left=1),
        AT_LEAST,
    ),
    "a twin and a stranger under one key": (
        World((*TWINS, Client(b"g")), faults_left=1, lapses_left=1),
        AT_LEAST,
    ),
    "at most once: twins, a crash, lapses and lost replies": (
        World(TWINS, crashes_left=1, lapses_left=2, faults_left=2),
        AT_MOST,
    ),
    "at most once: a lost record": (World(TWINS, losses_left=1, lapses_left=1, faults_left=1), AT_MOST),
}


@pytest.fixture(scope="module")
def found() -> dict[str, Found]:
    return {}


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_interleaving_keeps_the_promise(name: str, found: dict[str, Found]) -> None:
    world, policy = SCENARIOS[name]
    found[name] = explore(world, policy)
    assert found[name].states > 300  # an explorer that goes nowhere finds nothing


def test_the_scenarios_reach_every_way_an_answer_can_end(found: dict[str, Found]) -> None:
    for name in SCENARIOS.keys() - found.keys():  # run alone, or on another worker
        found[name] = explore(*SCENARIOS[name])
    assert set().union(*(one.sometimes for one in found.values())) >= {
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
    }


def mutated(module: ModuleType, old: str, new: str) -> ModuleType:
    source = inspect.getsource(module)
    assert old in source, f"the mutant's line is gone: {old}"
    mutant = ModuleType(module.__name__)
    exec(compile(source.replace(old, new, 1), module.__name__, "exec"), mutant.__dict__)
    return mutant


def machine_with(decide: ModuleType) -> ModuleType:
    machine = mutated(machine_module, "", "")
    for name in ("decide", "Execute", "Replay", "Refuse", "Wait"):
        setattr(machine, name, getattr(decide, name))
    return machine


MUTANTS = {
    "an unconfirmed claim is not released": (
        "at most once: twins, a crash, lapses and lost replies",
        mutated(
            machine_module,
            "            yield RELEASE_LATER\n            return Bypass",
            "            return Bypass",
        ),
    ),
    "an unconfirmed claim runs": (
        "twins, three lost replies and a lapse",
        mutated(
            machine_module,
            'return Bypass(reply) if policy.on_store_error == "bypass" else Refuse(reply)',
            "return Execute(unconfirmed(key, Owner(b'o0')))",
        ),
    ),
    "a lost claim counts as recorded": (
        "twins, three lost replies and a lapse",
        mutated(
            machine_module,
            "        if answer is False:",
            "        if answer is False:\n            return RECORDED",
        ),
    ),
    "a lost claim's own answer goes out beside its successor's": (
        "twins, three lost replies and a lapse",
        mutated(
            machine_module,
            "return Superseded(Completed(fingerprint, outcome, found.age, found.expires_in))",
            "return Forgotten()",
        ),
    ),
    "a store that fails at the look is taken for an empty one": (
        "twins, three lost replies and a lapse",
        mutated(
            machine_module,
            "        case StoreError():\n            return Refuse(found)",
            "        case StoreError():\n            return RECORDED",
        ),
    ),
    "a mismatch is replayed": (
        "a twin and a stranger under one key",
        machine_with(mutated(decide_module, "if reply.fingerprint != fingerprint:", "if False:")),
    ),
    "an abandoned run leaves its retries waiting for ever": (
        "at most once: twins, a crash, lapses and lost replies",
        machine_with(
            mutated(decide_module, "return Refuse(OutcomeUnknown(key_id=key_id(key)))", "return Wait(0.0)")
        ),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_core_is_found_out(name: str) -> None:
    scenario, core = MUTANTS[name]
    world, policy = SCENARIOS[scenario]
    with pytest.raises(Violated):
        explore(world, policy, core=core)
