"""
Explores every interleaving of a few clients with a store that obeys R1 to R5, lost replies, crashes and ending leases.

A client is the core's own protocol, represented by the events that were sent to it. A state of the world is therefore a
plain value, equal states are explored once, and as no step can be undone the complete schedules can be counted. The
explorer does not know how the protocol decides; it checks the invariants that are numbered in docs/reliability.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import interleaved_store as store
from interleaved_store import KEY, StoredRecord

from idempotency._core import protocol as shipped
from idempotency._core.errors import InProgress, OutcomeUnknown, StoreError, StoreUnavailable
from idempotency._core.policy import Policy
from idempotency._core.types import Claim, Completed, Fingerprint, Owner, Record, Running

__all__ = ["Client", "Found", "Violated", "World", "explore"]

DOWN = StoreUnavailable("no reply")
_WAIT_STEP = 0.6  # s that pass in one wait


class Client(NamedTuple):
    """
    Phases: "begin" (claiming), "run" (the handler runs), "record" and "release" (ending the run), "done", "dead".

    Attributes:
        events: The events sent to the client's current generator, in order.
        answer: The outcome that the client answered with; None if it refused or has not answered.
        refused: The class of the error that the client refused with.
        life: The number of the record that the client's claim belongs to; 0 before the claim.
    """

    fingerprint: bytes
    phase: str = "begin"
    events: tuple[Any, ...] = ()
    claim: Claim | None = None
    answer: bytes | None = None
    refused: type | None = None
    life: int = 0
    waited: float = 0.0


class World(NamedTuple):
    """
    The state of all clients and of the store; an attribute `..._left` limits how often an event may still happen.

    Attributes:
        late: The owners whose late release is still pending.
        raised: The number of handlers that raised after their effect.
    """

    clients: tuple[Client, ...]
    kept: StoredRecord | None = None
    late: frozenset[bytes] = frozenset()
    lives: int = 0
    effects: int = 0
    takeovers: int = 0
    losses: int = 0
    raised: int = 0
    faults_left: int = 0
    crashes_left: int = 0
    lapses_left: int = 0
    losses_left: int = 0
    raises_left: int = 0


class Found(NamedTuple):
    """
    The result of an exploration.

    Attributes:
        schedules: The number of complete orders of events, from the start to a state without a next step.
        reached: The kinds of steps taken, as evidence that the exploration covers them.
    """

    states: int
    schedules: int
    reached: set[str]


class Violated(AssertionError):
    """An invariant does not hold; the message names it and the steps that led there."""


class _Visit:
    """A state on the current path: its steps that are not explored yet, and the schedules found so far."""

    __slots__ = ("schedules", "step", "steps", "world")

    def __init__(self, world: World, step: str, steps: Iterator[tuple[str, World]]) -> None:
        self.world = world
        self.step = step
        self.steps = steps
        self.schedules = 0


def explore(
    start: World,
    policy: Policy,
    *,
    core: ModuleType = shipped,
    transactional: bool = False,
    limit: int = 10_000_000,
) -> Found:
    """
    Visit every state reachable from *start*.

    Args:
        transactional: Effect and record are one commit (`complete_in`); else an effect precedes its record.
    Raises:
        Violated: With the steps that led there.
    """
    relation = StepRelation(core, policy, transactional=transactional)
    schedules: dict[World, int] = {start: 0}  # from each state on; 0 while the state is on the path
    path = [_Visit(start, "", relation.steps(start))]
    reached: set[str] = set()
    try:
        while path:
            visit = path[-1]
            step, after = next(visit.steps, (None, None))
            if after is None:
                if not visit.schedules:  # no step is left
                    relation.check_retry(visit.world)
                    visit.schedules = 1
                schedules[visit.world] = visit.schedules
                path.pop()
                if path:
                    path[-1].schedules += visit.schedules
                continue
            assert step is not None
            reached.add(step.partition(" ")[2])
            known = schedules.get(after)
            if known is None:
                schedules[after] = 0
                path.append(_Visit(after, step, relation.steps(after)))
                relation.check(after)
            elif known:
                visit.schedules += known
            else:
                raise Violated("I10: a state is reached again: the clients make no progress")
            if len(schedules) > limit:
                raise AssertionError(f"more than {limit} states: the scenario is too large to be exhaustive")
    except Violated as violated:
        raise Violated(f"{violated}: {'; '.join(visit.step for visit in path[1:])}") from None
    return Found(len(schedules), schedules[start], reached)


class StepRelation:
    """The steps between states of the world, and the invariants that hold in them."""

    def __init__(self, core: ModuleType, policy: Policy, *, transactional: bool) -> None:
        self.core = core
        self.policy = policy
        self.transactional = transactional
        # A generator cannot be copied: the state of each client is replayed from the events sent to it.
        self.at = lru_cache(maxsize=None)(self._at)

    def _at(
        self, phase: str, fingerprint: bytes, claim: Claim | None, events: tuple[Any, ...]
    ) -> tuple[Any, bool]:
        """The pending action and False, or the verdict and True."""
        if phase == "begin":
            steps = self.core.begin(
                KEY, Fingerprint(fingerprint), policy=self.policy, wait=self.policy.wait, random=lambda: 0.5
            )
        elif phase == "record":
            steps = self.core.record(claim, Fingerprint(fingerprint), random=lambda: 0.5)
        else:
            steps = self.core.release()
        try:
            action = next(steps)
            for event in events:
                action = steps.send(event)
        except StopIteration as end:
            return end.value, True
        return action, False

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        """Every step that may happen next."""
        for number, client in enumerate(world.clients):
            if client.phase not in {"done", "dead"}:
                for what, after in self._client_steps(world, number, client):
                    yield f"{number}: {what}", after
        kept = world.kept
        if kept is not None and kept.outcome is None and not kept.lapsed and world.lapses_left:
            lapsed = kept._replace(lapsed=True)
            yield "- lease lapses", world._replace(kept=lapsed, lapses_left=world.lapses_left - 1)
        if kept is not None and world.losses_left:
            yield (
                "- record lost",
                world._replace(kept=None, losses=world.losses + 1, losses_left=world.losses_left - 1),
            )
        for owner in world.late:
            released = store.release(world, Claim(KEY, Owner(owner), 0, 0))[1]
            yield f"- late release {owner.decode()}", released._replace(late=world.late - {owner})

    def _client_steps(self, world: World, number: int, client: Client) -> Iterator[tuple[str, World]]:
        def becomes(elsewhere: World = world, **changes: Any) -> World:
            clients = elsewhere.clients
            changed = client._replace(**changes)
            return elsewhere._replace(clients=(*clients[:number], changed, *clients[number + 1 :]))

        if world.crashes_left:
            yield "crashes", becomes(phase="dead")._replace(crashes_left=world.crashes_left - 1)
        if client.phase == "run":
            yield from self._run(world, number, client, becomes)
            return
        action, over = self.at(client.phase, client.fingerprint, client.claim, client.events)
        if over:
            yield self._verdict(world, client, number, action, becomes)
            return
        name, events = type(action).__name__, client.events
        if name == "Await":
            waited = client.waited + _WAIT_STEP
            yield name, becomes(events=(*events, self.core.WaitEnded(waited)), waited=waited)
            return
        if name == "Sleep":
            yield name, becomes(events=(*events, None))
            return
        if name == "ReleaseLater":
            owner = _owner(number) if client.claim is None else client.claim.owner
            yield name, becomes(world._replace(late=world.late | {owner}), events=(*events, None))
            return
        reply, applied = self._apply(world, number, client, name)
        replied = becomes(applied, events=(*events, reply))
        yield f"{name} -> {type(reply).__name__} {reply is True}", replied
        if world.faults_left:
            left = world.faults_left - 1
            lost = becomes(applied, events=(*events, DOWN))
            yield f"{name} applied, reply lost", lost._replace(faults_left=left)
            yield f"{name} not applied", becomes(events=(*events, DOWN))._replace(faults_left=left)

    def _run(
        self, world: World, number: int, client: Client, becomes: Callable[..., World]
    ) -> Iterator[tuple[str, World]]:
        """The handler: its effect and, in one transaction, its record."""
        if not self.transactional:
            effected = world._replace(effects=world.effects + 1)
            yield "effect, then records", becomes(effected, phase="record", events=())
            if world.raises_left:
                raised = effected._replace(raised=world.raised + 1, raises_left=world.raises_left - 1)
                yield "effect, then raises", becomes(raised, phase="release", events=())
            return
        assert client.claim is not None
        held, committed = store.complete(world, client.claim, outcome_of(client, number))
        if not held:
            yield "rolls back, superseded", becomes(phase="release", events=())
            return
        committed = committed._replace(effects=world.effects + 1)
        yield "commits", becomes(committed, phase="record", events=())
        if world.faults_left:
            left = world.faults_left - 1
            lost = becomes(committed, phase="release", events=())
            yield "commits, reply lost", lost._replace(faults_left=left)
            aborted = becomes(phase="release", events=())
            yield "commit fails", aborted._replace(faults_left=left)

    def _apply(self, world: World, number: int, client: Client, name: str) -> tuple[Any, World]:
        if name == "Acquire":
            return store.acquire(world, client.fingerprint, _owner(number), takeover=self.policy.takeover)
        assert client.claim is not None
        if name == "Complete":
            return store.complete(world, client.claim, outcome_of(client, number))
        if name == "Release":
            return store.release(world, client.claim)
        assert name == "GetRecord", name
        return store.get(world), world

    def _verdict(
        self, world: World, client: Client, number: int, verdict: Any, becomes: Callable[..., World]
    ) -> tuple[str, World]:
        """Checks the end of the protocol against the last event that was sent to it."""
        name, last = type(verdict).__name__, client.events[-1] if client.events else None
        own = outcome_of(client, number)
        done: dict[str, Any] = {"phase": "done", "events": ()}
        if name == "Execute":
            life = client.life
            if world.kept is not None and world.kept.owner == verdict.claim.owner:
                life = world.kept.life
            return "runs", becomes(phase="run", events=(), claim=verdict.claim, life=life)
        if name in {"Replay", "Superseded"}:
            completed = verdict.completed
            what = "replays" if name == "Replay" else "answers with its successor's"
            return what, becomes(**done, answer=completed.outcome, life=_life_of(world, completed))
        if name == "Bypass":
            raise Violated("I11: a client runs unprotected although the policy refuses")
        if name == "Refuse":
            self._check_refusal(client, verdict.error, last)
            return f"refuses {type(verdict.error).__name__}", becomes(**done, refused=type(verdict.error))
        if client.phase == "release":
            return "raised", becomes(**done, refused=RuntimeError)
        if name == "Recorded":
            kept = world.kept
            if not world.losses and (kept is None or kept.outcome != own):
                raise Violated("I9: an answer is marked as recorded, and is not")
            return "answers, recorded", becomes(**done, answer=own)
        if name == "Unrecorded" and not isinstance(last, StoreError):
            raise Violated(
                "E8: a client learned that its claim is lost, and did not read the successor's record"
            )
        if name == "Forgotten" and isinstance(last, Record) and last.fingerprint == client.fingerprint:
            raise Violated("E8: a client sent its own answer although it had read the successor's record")
        return f"answers, {name}", becomes(**done, answer=own, life=0)

    @staticmethod
    def _check_refusal(client: Client, error: Exception, last: Any) -> None:
        is_other = isinstance(last, Running | Completed) and last.fingerprint != client.fingerprint
        if is_other and isinstance(error, InProgress | OutcomeUnknown):
            raise Violated("I7: another request was told the state of the first one")

    def check(self, world: World) -> None:
        """Checks what holds in every state (I2, I3, I7, I13, I14)."""
        allowed = 1 + world.losses + world.raised  # a handler that raised freed its key: the policy says so
        if self.policy.takeover and not self.transactional:
            allowed += world.takeovers
        if world.effects > allowed:
            raise Violated(f"I2: {world.effects} effects, {allowed} allowed")
        if self.transactional and not world.losses:
            recorded = world.kept is not None and world.kept.outcome is not None
            if recorded != bool(world.effects):
                raise Violated(f"I14: {world.effects} effects, and the record is {world.kept}")
        answers: dict[int, bytes] = {}
        for client in world.clients:
            if client.waited > self.policy.wait + _WAIT_STEP:
                raise Violated(f"I13: a request has waited {client.waited:g} s")
            if client.answer is not None and client.life:
                if answers.setdefault(client.life, client.answer) != client.answer:
                    raise Violated("I3: one record, two answers")
                if not client.answer.startswith(client.fingerprint):
                    raise Violated("I7: a request was answered with the outcome of another request")

    def check_retry(self, world: World) -> None:
        """I10: after all steps, a later retry of the first request gets a final answer."""
        kept = world.kept
        if kept is not None and kept.outcome is None:
            if any(
                kept.owner == _owner(n) and c.refused is RuntimeError for n, c in enumerate(world.clients)
            ):
                raise Violated("I10: a handler raised, and its key was not freed")
            world = world._replace(kept=kept._replace(lapsed=True))  # time passes
        if kept is not None and kept.fingerprint != world.clients[0].fingerprint:
            return
        retry = Client(world.clients[0].fingerprint)
        world = world._replace(clients=(*world.clients, retry), faults_left=0, crashes_left=0, losses_left=0)
        number = len(world.clients) - 1
        for _ in range(6):
            client = world.clients[number]
            if client.phase in {"run", "done"}:
                break
            _, world = next(self._client_steps(world, number, client))
        client = world.clients[number]
        if client.phase == "run" or client.answer is not None:
            return
        if client.refused is OutcomeUnknown and not self.policy.takeover and self._may_have_run(world):
            return
        raise Violated(f"I10: a later retry is stuck ({client.refused})")

    def _may_have_run(self, world: World) -> bool:
        """Whether the owner of the record died, or ran its handler."""
        return any(
            world.kept is not None
            and world.kept.owner == _owner(number)
            and (client.phase == "dead" or client.claim is not None)
            for number, client in enumerate(world.clients)
        )


def _owner(number: int) -> Owner:
    return Owner(b"o%d" % number)


def outcome_of(client: Client, number: int) -> bytes:
    attempt = client.claim.attempt if client.claim else 0
    return client.fingerprint + b"/%d/%d" % (number, attempt)


def _life_of(world: World, completed: Completed) -> int:
    if world.kept is not None and world.kept.outcome == completed.outcome:
        return world.kept.life
    return 0
