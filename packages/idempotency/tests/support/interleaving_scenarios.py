"""The explorer's scenarios, small for every test run and deep, and mutants of the core that the explorer must catch."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import NamedTuple

from interleaved_store import KEY
from interleavings import Client, Found, World, explore

from idempotency import Policy
from idempotency._core import protocol

__all__ = ["DEEP", "MUTANTS", "SCENARIOS", "Scenario"]

AT_LEAST = Policy(wait=1.0)
AT_MOST = Policy.at_most_once(wait=1.0)

ONE, TWO, THREE = ((Client(b"f"),) * count for count in (1, 2, 3))
OTHER_REQUEST = (Client(b"g"),)


class Scenario(NamedTuple):
    """The clients, the faults that may happen to them, and the policy."""

    world: World
    policy: Policy = AT_LEAST
    transactional: bool = False

    def explore(self, core: ModuleType = protocol) -> Found:
        """Explore every interleaving."""
        return explore(self.world, self.policy, core=core, transactional=self.transactional)


SCENARIOS = {
    "three duplicates, a crash and a lapse": Scenario(World(THREE, crashes_left=1, lapses_left=1)),
    "duplicates, three lost replies and a lapse": Scenario(World(TWO, faults_left=3, lapses_left=1)),
    "duplicates, a stall, a lost reply and a handler that raises": Scenario(
        World(TWO, faults_left=1, lapses_left=2, raises_left=1)
    ),
    "duplicates, a lost record, a lapse and a lost reply": Scenario(
        World(TWO, losses_left=1, lapses_left=1, faults_left=1)
    ),
    "a duplicate and another request under one key": Scenario(
        World((*TWO, *OTHER_REQUEST), faults_left=1, lapses_left=1)
    ),
    "another request under a key whose record is lost": Scenario(
        World((*ONE, *OTHER_REQUEST), losses_left=1, lapses_left=1, faults_left=2)
    ),
    "at most once: duplicates, a crash, lapses and lost replies": Scenario(
        World(TWO, crashes_left=1, lapses_left=2, faults_left=2), AT_MOST
    ),
    "at most once: a lost record": Scenario(World(TWO, losses_left=1, lapses_left=1, faults_left=1), AT_MOST),
    "one transaction: duplicates, a crash, a lapse and lost replies": Scenario(
        World(TWO, crashes_left=1, lapses_left=1, faults_left=2), transactional=True
    ),
}

DEEP = {
    "three duplicates, two crashes, two lapses and a lost reply": Scenario(
        World(THREE, crashes_left=2, lapses_left=2, faults_left=1)
    ),
    "four duplicates, a crash and a lapse": Scenario(World((*TWO, *TWO), crashes_left=1, lapses_left=1)),
    "duplicates, six lost replies and three lapses": Scenario(World(TWO, faults_left=6, lapses_left=3)),
    "duplicates, two lost records, two lapses, two lost replies and a handler that raises": Scenario(
        World(TWO, losses_left=2, lapses_left=2, faults_left=2, raises_left=1)
    ),
    "three duplicates and another request, a lost reply and a lapse": Scenario(
        World((*THREE, *OTHER_REQUEST), faults_left=1, lapses_left=1)
    ),
    "at most once: three duplicates, two crashes, two lapses and two lost replies": Scenario(
        World(THREE, crashes_left=2, lapses_left=2, faults_left=2), AT_MOST
    ),
    "one transaction: three duplicates, a crash, two lapses and a lost reply": Scenario(
        World(THREE, crashes_left=1, lapses_left=2, faults_left=1), transactional=True
    ),
}


def _mutated(old: str, new: str) -> ModuleType:
    """The protocol with one place changed."""
    source = inspect.getsource(protocol)
    assert old in source, f"the mutant's line is gone: {old}"
    mutant = ModuleType(protocol.__name__)
    exec(compile(source.replace(old, new, 1), protocol.__name__, "exec"), mutant.__dict__)
    mutant.__dict__["KEY"] = KEY
    return mutant


_LOST_REPLIES = "duplicates, three lost replies and a lapse"
_AT_MOST_ONCE = "at most once: duplicates, a crash, lapses and lost replies"
_STALL = "duplicates, a stall, a lost reply and a handler that raises"
_OTHER_REQUEST = "a duplicate and another request under one key"
_OTHER_REQUEST_AFTER_LOSS = "another request under a key whose record is lost"
_TRANSACTION = "one transaction: duplicates, a crash, a lapse and lost replies"
_MISMATCH = (
    "    if reply.fingerprint != fingerprint:\n        return FingerprintMismatch(key_id=key_id(key))\n"
)
_REFUSAL = "        refused = _refusal(reply, key, fingerprint, policy)\n"
_REPLAY = "        replay: Replay = _new(Replay, (reply, waited))\n        return replay\n"
_CLAIM = "Execute(Claim(KEY, Owner(b'o0'), 1, 1))"

MUTANTS: dict[str, tuple[str, ModuleType]] = {
    # The claim.
    "a claim that nobody confirmed is not released": (
        _AT_MOST_ONCE,
        _mutated("            yield RELEASE_LATER\n            return Bypass", "            return Bypass"),
    ),
    "a claim that nobody confirmed runs": (
        _LOST_REPLIES,
        _mutated(
            'return Bypass(reply) if policy.on_store_error == "bypass" else Refuse(reply)',
            f"return {_CLAIM}",
        ),
    ),
    "a store that fails is bypassed where the policy refuses": (
        _LOST_REPLIES,
        _mutated('policy.on_store_error == "bypass" else', 'policy.on_store_error != "bypass" else'),
    ),
    "a duplicate runs beside the first": (
        _LOST_REPLIES,
        _mutated(
            "assert isinstance(reply, Running | Completed)", f"if isinstance(reply, Running): return {_CLAIM}"
        ),
    ),
    "a recorded operation runs again": (
        _LOST_REPLIES,
        _mutated(_REPLAY, f"        return {_CLAIM}\n"),
    ),
    "a duplicate waits forever": (_LOST_REPLIES, _mutated("if waited >= wait:", "if False:")),
    # A key that is held.
    "another request is told that the first one runs": (
        _OTHER_REQUEST,
        _mutated(_MISMATCH, _MISMATCH.replace("FingerprintMismatch(", "InProgress(retry_after=1, ")),
    ),
    "another request is answered from the record": (
        _OTHER_REQUEST,
        _mutated(
            "isinstance(reply, Completed) and reply.fingerprint == fingerprint:",
            "isinstance(reply, Completed):",
        ),
    ),
    "another request waits for the first one": (
        _OTHER_REQUEST,
        _mutated(_MISMATCH, f"    if isinstance(reply, Running):\n        return None\n{_MISMATCH}"),
    ),
    "an abandoned run is taken over although the policy forbids it": (
        _AT_MOST_ONCE,
        _mutated(
            _REFUSAL,
            f"        if isinstance(reply, Running) and reply.lease_left <= 0: return {_CLAIM}\n{_REFUSAL}",
        ),
    ),
    "retries of an abandoned run wait forever": (
        _AT_MOST_ONCE,
        _mutated("return OutcomeUnknown(key_id=key_id(key))", "return None"),
    ),
    # The record.
    "a lost claim counts as recorded": (
        _STALL,
        _mutated("        if answer is False:", "        if answer is False:\n            return RECORDED"),
    ),
    "a lost claim is taken for a store that did not answer": (
        _STALL,
        _mutated(
            "            return (yield from _after_loss(claim, fingerprint, random))",
            "            return Unrecorded(StoreUnavailable('lost'))",
        ),
    ),
    "an answer that no store confirmed counts as recorded": (
        _LOST_REPLIES,
        _mutated("            return Unrecorded(answer)", "            return RECORDED"),
    ),
    "a key is freed after its effect because the record was not confirmed": (
        _LOST_REPLIES,
        _mutated("        yield Sleep(delay)", "        yield RELEASE"),
    ),
    # A lost claim.
    "a lost claim sends its own answer although its successor has recorded one": (
        _STALL,
        _mutated(
            "return Superseded(Completed(fingerprint, outcome, found.age, found.expires_in))",
            "return Forgotten()",
        ),
    ),
    "a lost claim sends its own answer while its successor runs": (
        _STALL,
        _mutated(
            "case Record(state=State.RUNNING) if found", "case Record(state=State.RUNNING) if False and found"
        ),
    ),
    "a lost claim is answered from the record of another request": (
        _OTHER_REQUEST_AFTER_LOSS,
        _mutated("outcome=bytes(outcome)) if found.fingerprint == fingerprint:", "outcome=bytes(outcome)):"),
    ),
    "a store that fails to return the record is taken for an empty one": (
        _STALL,
        _mutated(
            "        case StoreError():\n            return Refuse(found)",
            "        case StoreError():\n            return RECORDED",
        ),
    ),
    # The release.
    "a run that raised keeps its key": (
        _STALL,
        _mutated("    answer = yield RELEASE\n", "    answer = True\n    yield Sleep(0.0)\n"),
    ),
    "a release that no store confirmed is not repeated": (
        _STALL,
        _mutated("        yield RELEASE_LATER\n\n\ndef release_late", "        pass\n\n\ndef release_late"),
    ),
}
