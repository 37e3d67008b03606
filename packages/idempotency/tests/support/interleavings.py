"""
Every interleaving of a few clients with a store that obeys R1 to R5, lost replies, crashes and lapsing leases.

A client is the core's own machine, known only by the events it was sent, so a state of the world is a plain value and
equal states are explored once. The explorer knows nothing of how the machine decides; it checks what must hold
whatever happens (the invariants are numbered in docs/concepts.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

from idempotency._core import machine as shipped
from idempotency._core.errors import InProgress, OutcomeUnknown, StoreUnavailable
from idempotency._core.policy import Policy
from idempotency._core.types import (
    Acquired,
    Claim,
    Completed,
    Fingerprint,
    Owner,
    Record,
    Running,
    State,
    StorageKey,
)

KEY = StorageKey("k")
DOWN = StoreUnavailable("no reply")
WAIT = 1.0


class Kept(NamedTuple):
    """The store's record of the one key there is; *life* numbers the records it ever had."""

    life: int
    fingerprint: bytes
    owner: bytes
    attempt: int
    lapsed: bool
    outcome: bytes | None


class Client(NamedTuple):
    """
    Phases: "begin" (asking), "run" (the handler runs), "record" and "give up" (ending it), "done", "dead".

    Attributes:
        events: What its current generator was sent, in order.
        answer: The outcome it answered with, None where it refused or has not answered.
        refused: The class of the error it refused with.
        life: The record's life its claim belongs to, 0 before.
    """

    fingerprint: bytes
    phase: str = "begin"
    events: tuple[Any, ...] = ()
    claim: Claim | None = None
    answer: bytes | None = None
    refused: type | None = None
    life: int = 0
    asleep: float = 0.0


@dataclass(frozen=True, slots=True)
class World:
    clients: tuple[Client, ...]
    kept: Kept | None = None
    late: frozenset[bytes] = frozenset()  # owners whose release is still under way
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


@dataclass
class Found:
    """What an exploration saw; `sometimes` proves that it reached what it claims to have checked."""

    states: int
    sometimes: set[str]


class Violated(AssertionError):
    """An invariant does not hold; the message says which and how it came about."""


def explore(start: World, policy: Policy, *, core: ModuleType = shipped, limit: int = 2_000_000) -> Found:
    """
    Visit every state reachable from *start*.

    Raises:
        Violated: With the steps that led there.
    """
    machines = Machines(core, policy)
    seen: set[World] = {start}
    stack: list[tuple[World, tuple[str, ...]]] = [(start, ())]
    sometimes: set[str] = set()
    while stack:
        world, path = stack.pop()
        final = True
        for step, after in machines.steps(world):
            final = False
            try:
                check(after, policy)
            except Violated as violated:
                raise Violated(f"{violated}: {'; '.join((*path, step))}") from None
            sometimes.add(step.partition(" ")[2])
            if after not in seen:
                seen.add(after)
                stack.append((after, (*path, step)))
        if final:
            try:
                machines.check_retry(world)
            except Violated as violated:
                raise Violated(f"{violated}: {'; '.join(path)}") from None
        if len(seen) > limit:
            raise AssertionError(f"more than {limit} states: the scenario is too large to be exhaustive")
    return Found(len(seen), sometimes)


def check(world: World, policy: Policy) -> None:
    """What holds in every state (I2, I3, I7)."""
    allowed = 1 + world.losses + (world.takeovers if policy.takeover else 0)
    if world.effects > allowed + world.raised:  # a handler that raised freed its key: the policy says so
        raise Violated(f"I2: {world.effects} effects, {allowed + world.raised} allowed")
    answers: dict[int, set[bytes]] = {}
    for client in world.clients:
        if client.answer is not None and client.life:
            answers.setdefault(client.life, set()).add(client.answer)
            if not client.answer.startswith(client.fingerprint):
                raise Violated("I7: a request was answered with another one's outcome")
    if any(len(seen) > 1 for seen in answers.values()):
        raise Violated(f"I3: one record, {answers} answered")


class Machines:
    """The step relation over worlds."""

    def __init__(self, core: ModuleType, policy: Policy) -> None:
        self.core = core
        self.policy = policy
        # A generator cannot be copied: each client is brought to its place again from what it was sent.
        self.at = lru_cache(maxsize=None)(self._at)

    def _at(
        self, phase: str, fingerprint: bytes, claim: Claim | None, events: tuple[Any, ...]
    ) -> tuple[Any, bool]:
        """The pending action, or the verdict and True."""
        if phase == "begin":
            steps = self.core.begin(
                KEY, Fingerprint(fingerprint), policy=self.policy, wait=self.policy.wait, chance=lambda: 0.5
            )
        elif phase == "record":
            steps = self.core.record(claim, Fingerprint(fingerprint), chance=lambda: 0.5)
        else:
            steps = self.core.give_up(claim)
        try:
            action = next(steps)
            for event in events:
                action = steps.send(event)
        except StopIteration as end:
            return end.value, True
        return action, False

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        """Everything that may happen next."""
        for number, client in enumerate(world.clients):
            for what, after in self._client_steps(world, number, client):
                yield f"{number}: {what}", after
        if (
            world.kept is not None
            and world.kept.outcome is None
            and not world.kept.lapsed
            and world.lapses_left
        ):
            yield (
                "- lease lapses",
                replace(world, kept=world.kept._replace(lapsed=True), lapses_left=world.lapses_left - 1),
            )
        if world.kept is not None and world.losses_left:
            yield (
                "- record lost",
                replace(world, kept=None, losses=world.losses + 1, losses_left=world.losses_left - 1),
            )
        for owner in world.late:
            yield (
                f"- late release {owner.decode()}",
                replace(release(world, Claim(KEY, Owner(owner), 0, 0))[1], late=world.late - {owner}),
            )

    def _client_steps(self, world: World, number: int, client: Client) -> Iterator[tuple[str, World]]:
        if client.phase in {"done", "dead"}:
            return

        def becomes(changed: Client, elsewhere: World = world) -> World:
            clients = list(elsewhere.clients)
            clients[number] = changed
            return replace(elsewhere, clients=tuple(clients))

        if world.crashes_left:
            yield (
                "crashes",
                replace(becomes(client._replace(phase="dead")), crashes_left=world.crashes_left - 1),
            )
        if client.phase == "run":
            effected = replace(world, effects=world.effects + 1)
            yield "effect, then records", becomes(client._replace(phase="record", events=()), effected)
            if world.raises_left:
                raised = replace(effected, raised=world.raised + 1, raises_left=world.raises_left - 1)
                yield "effect, then raises", becomes(client._replace(phase="give up", events=()), raised)
            return
        action, over = self.at(client.phase, client.fingerprint, client.claim, client.events)
        if over:
            yield self._verdict(world, client, number, action, becomes)
            return
        name = type(action).__name__
        if name in {"Await", "Pause"}:
            slept = client.asleep + 0.6
            event = self.core.Woken(slept) if name == "Await" else None
            yield name, becomes(client._replace(events=(*client.events, event), asleep=slept))
            return
        if name == "ReleaseLater":
            owner = self._owner(number) if client.claim is None else client.claim.owner
            told = replace(world, late=world.late | {owner})
            yield name, becomes(client._replace(events=(*client.events, None)), told)
            return
        reply, applied = self._apply(world, number, client, name)
        yield (
            f"{name} -> {type(reply).__name__} {reply is True}",
            becomes(client._replace(events=(*client.events, reply)), applied),
        )
        if world.faults_left:
            unanswered = client._replace(events=(*client.events, DOWN))
            yield (
                f"{name} applied, reply lost",
                replace(becomes(unanswered, applied), faults_left=world.faults_left - 1),
            )
            yield f"{name} not applied", replace(becomes(unanswered), faults_left=world.faults_left - 1)

    @staticmethod
    def _owner(number: int) -> Owner:
        return Owner(b"o%d" % number)

    def _apply(self, world: World, number: int, client: Client, name: str) -> tuple[Any, World]:
        if name == "Acquire":
            return acquire(world, client.fingerprint, self._owner(number), takeover=self.policy.takeover)
        assert client.claim is not None
        if name == "Complete":
            return complete(world, client.claim, outcome_of(client, number))
        if name == "Release":
            return release(world, client.claim)
        assert name == "Look", name
        return look(world), world

    def _verdict(
        self, world: World, client: Client, number: int, verdict: Any, becomes: Any
    ) -> tuple[str, World]:
        name = type(verdict).__name__
        done = client._replace(phase="done", events=())
        life = world.kept.life if world.kept else 0
        if name == "Execute":
            if world.kept is not None and world.kept.owner == verdict.claim.owner:
                life = world.kept.life
            return "runs", becomes(client._replace(phase="run", events=(), claim=verdict.claim, life=life))
        if name == "Replay":
            return "replays", becomes(
                done._replace(answer=verdict.completed.outcome, life=life_of(world, verdict.completed))
            )
        if name == "Superseded":
            return "answers with its successor's", becomes(
                done._replace(answer=verdict.completed.outcome, life=life_of(world, verdict.completed))
            )
        if name == "Refuse":
            return f"refuses {type(verdict.error).__name__}", becomes(
                done._replace(refused=type(verdict.error))
            )
        if name == "Recorded":
            return "answers, recorded", becomes(done._replace(answer=outcome_of(client, number)))
        if name == "Forgotten" and isinstance(client.events[-1], Record):
            seen = client.events[-1]
            if seen.fingerprint == client.fingerprint:
                raise Violated("E8: its own answer went out although it saw its successor's record")
        if client.phase == "give up":
            return "raised", becomes(done._replace(refused=RuntimeError))
        return f"answers, {name}", becomes(done._replace(answer=outcome_of(client, number), life=0))

    def check_retry(self, world: World) -> None:
        """I10: once all is quiet, a later retry of the first request gets a final answer."""
        if world.kept is not None and world.kept.outcome is None:
            world = replace(world, kept=world.kept._replace(lapsed=True))  # time passes
        if world.kept is not None and world.kept.fingerprint != world.clients[0].fingerprint:
            return
        retry = Client(world.clients[0].fingerprint)
        world = replace(world, clients=(*world.clients, retry), faults_left=0, crashes_left=0, losses_left=0)
        number = len(world.clients) - 1
        for _ in range(6):
            client = world.clients[number]
            if client.phase in {"run", "done"}:
                break
            _, world = next(iter(self._client_steps(world, number, client)))
        client = world.clients[number]
        if client.phase == "run" or client.answer is not None:
            return
        if client.refused is OutcomeUnknown and not self.policy.takeover and self._may_have_run(world):
            return
        raise Violated(f"I10: a later retry is stuck ({client.refused})")

    def _may_have_run(self, world: World) -> bool:
        """Whether the owner of the record died, or ran its handler."""
        owners = [self._owner(number) for number in range(len(world.clients))]
        return any(
            world.kept is not None
            and world.kept.owner == owner
            and (client.phase == "dead" or client.claim is not None)
            for owner, client in zip(owners, world.clients, strict=True)
        )


def outcome_of(client: Client, number: int) -> bytes:
    attempt = client.claim.attempt if client.claim else 0
    return client.fingerprint + b"/%d/%d" % (number, attempt)


def life_of(world: World, completed: Completed) -> int:
    if world.kept is not None and world.kept.outcome == completed.outcome:
        return world.kept.life
    return 0


# The store, as the rules have it; each function is one atomic step.


def acquire(world: World, fingerprint: bytes, owner: Owner, *, takeover: bool) -> tuple[Any, World]:
    kept = world.kept
    if kept is None:
        lives = world.lives + 1
        kept = Kept(lives, fingerprint, owner, 1, lapsed=False, outcome=None)
        return Acquired(Claim(KEY, owner, 1, lives)), replace(world, kept=kept, lives=lives)
    if kept.outcome is not None:
        return Completed(Fingerprint(kept.fingerprint), kept.outcome, 0.0, 1.0), world
    if kept.owner == owner:
        return Acquired(Claim(KEY, owner, kept.attempt, kept.life)), world
    if not kept.lapsed:
        return Running(Fingerprint(kept.fingerprint), 1.0), world
    if kept.fingerprint == fingerprint and takeover:
        kept = kept._replace(owner=owner, attempt=kept.attempt + 1, lapsed=False)
        claim = Claim(KEY, owner, kept.attempt, kept.life)
        return Acquired(claim), replace(world, kept=kept, takeovers=world.takeovers + 1)
    return Running(Fingerprint(kept.fingerprint), 0.0), world


def complete(world: World, claim: Claim, outcome: bytes) -> tuple[bool, World]:
    kept = world.kept
    if kept is None or kept.owner != claim.owner:
        return False, world
    if kept.outcome is not None:
        return True, world
    return True, replace(world, kept=kept._replace(outcome=outcome))


def release(world: World, claim: Claim) -> tuple[bool, World]:
    kept = world.kept
    if kept is None or kept.owner != claim.owner or kept.outcome is not None:
        return False, world
    return True, replace(world, kept=None)


def look(world: World) -> Record | None:
    kept = world.kept
    if kept is None:
        return None
    return Record(
        key=KEY,
        state=State.RUNNING if kept.outcome is None else State.COMPLETED,
        fingerprint=Fingerprint(kept.fingerprint),
        owner=Owner(kept.owner),
        attempt=kept.attempt,
        fence=kept.life,
        outcome=kept.outcome,
        lease_left=0.0 if kept.lapsed else 1.0,
        age=0.0,
        expires_in=1.0,
    )


__all__ = ["Client", "Found", "InProgress", "Violated", "World", "explore"]
