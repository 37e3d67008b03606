"""Random histories of two keys, three owners and two fingerprints; the specification checks each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, multiple, rule

from idempotency._core.types import Acquired, Claim, Fingerprint, Owner, Record, Reply, StorageKey
from idempotency.testing._spec import Acquire, Call, Complete, Get, Release, Renew, SpecState, step
from idempotency.testing._subject import Subject

__all__ = ["machine"]

_KEYS, _OWNERS, _FINGERPRINTS = range(2), range(3), range(2)
_LEASES = (1, 3)  # in units of the clock: in every history some lapse, and some last a few steps
_RETENTIONS = (2, 8)
_OUTCOMES = (b'{"n":1}', b'{"n":2}')


def machine(subject: Subject) -> type[RuleBasedStateMachine]:
    """Histories over two new keys each."""

    class History(_History):
        def __init__(self) -> None:
            super().__init__(subject)

    return History


class _History(RuleBasedStateMachine):
    """
    Compares a real store with the specification, for each key.

    `_states[key]` is the set of states that the answers so far allow; if it becomes empty, the store broke a rule.
    """

    claims = Bundle("claims")

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self._subject = subject
        self._unit = subject.clock.unit
        self._keys = [subject.key() for _ in _KEYS]
        self._states: dict[StorageKey, set[SpecState]] = {key: {None} for key in self._keys}
        self._fences: dict[StorageKey, dict[int, Owner]] = {key: {} for key in self._keys}

    @rule(
        target=claims,
        key=st.sampled_from(_KEYS),
        who=st.sampled_from(_OWNERS),
        what=st.sampled_from(_FINGERPRINTS),
        lease=st.sampled_from(_LEASES),
        retention=st.sampled_from(_RETENTIONS),
        takeover=st.booleans(),
        idle=st.sampled_from((0, 0, 1)),
    )
    def acquire(
        self, key: int, who: int, what: int, lease: int, retention: int, takeover: bool, idle: int
    ) -> Any:
        if idle:  # exactly the shortest lease: the moment when a claim lapses
            self._subject.pass_time(idle * self._unit)
        call = Acquire(
            self._keys[key],
            Fingerprint(bytes([what]) * 32),
            # An owner is drawn for one request, so for one `what`.
            Owner(f"owner {who} asks {what} ".encode()),
            lease * self._unit,
            retention * self._unit,
            takeover,
        )
        reply = self._check(
            call,
            lambda: self._subject.acquire(
                call.key,
                fingerprint=call.fingerprint,
                owner=call.owner,
                lease=call.lease,
                retention=call.retention,
                takeover=call.takeover,
            ),
        )
        if not isinstance(reply, Acquired):
            return multiple()
        self._check_fence(reply.claim)
        return reply.claim

    @rule(claim=claims, lease=st.sampled_from(_LEASES))
    def renew(self, claim: Claim, lease: int) -> None:
        seconds = lease * self._unit
        self._check(Renew(claim.key, claim.owner, seconds), lambda: self._subject.renew(claim, lease=seconds))

    @rule(claim=claims, outcome=st.sampled_from(_OUTCOMES), retention=st.sampled_from(_RETENTIONS))
    def complete(self, claim: Claim, outcome: bytes, retention: int) -> None:
        seconds = retention * self._unit
        self._check(
            Complete(claim.key, claim.owner, outcome, seconds),
            lambda: self._subject.complete(claim, outcome, retention=seconds),
        )

    @rule(claim=claims)
    def release(self, claim: Claim) -> None:
        self._check(Release(claim.key, claim.owner), lambda: self._subject.release(claim))

    @rule(target=claims, claim=consumes(claims))
    def forget_the_fence(self, claim: Claim) -> Claim:
        """A caller whose grant was never confirmed knows only its owner; that must be enough for a store."""
        return Claim(claim.key, claim.owner, 1, 0)

    @rule(target=claims, key=st.sampled_from(_KEYS))
    def make_up_a_claim(self, key: int) -> Claim:
        return Claim(self._keys[key], Owner(b"nobody's 16 byte"), 1, 1)

    @rule(key=st.sampled_from(_KEYS))
    def get(self, key: int) -> None:
        name = self._keys[key]
        self._check(Get(name), lambda: self._subject.get(name))

    @rule(units=st.sampled_from((1, 2, 5)))
    def pass_time(self, units: int) -> None:
        self._subject.pass_time(units * self._unit)

    def _check(self, call: Call, perform: Callable[[], Any]) -> Reply | Record | bool | None:
        reply, now = self._subject.timed(perform)
        before = self._states[call.key]
        after = {state for known in before for state in step(known, call, reply, now)}
        assert after, f"{call} answered {reply}, which the rules forbid in {before}, now {now}"
        self._states[call.key] = after
        return reply  # type: ignore[no-any-return]

    def _check_fence(self, claim: Claim) -> None:
        """R9: each grant has a higher fence than all before it; a repeated grant has the same fence as before (R2)."""
        granted = self._fences[claim.key]
        if granted.get(claim.fence) != claim.owner:
            assert claim.fence > max(granted, default=0), (
                f"fence {claim.fence} does not rise above {max(granted)}"
            )
            granted[claim.fence] = claim.owner
