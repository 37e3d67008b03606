"""Waiting for a concurrent duplicate: the protocol alone, with a clock that the test moves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from idempotency import Policy
from idempotency._core.actions import Acquire, Await, Execute, WaitEnded
from idempotency._core.protocol import begin
from idempotency._core.types import Acquired, Claim, Fingerprint, Owner, Running, StorageKey

KEY, FINGERPRINT = StorageKey("k"), Fingerprint(b"f")
CLAIM = Claim(KEY, Owner(b"o" * 16), 2, 2)


class Duplicate:
    """A store with the claim of another owner; *renewed* are the times at which that owner renews its lease."""

    def __init__(self, lease: float, renewed: list[float]) -> None:
        self.now, self.polls = 0.0, 0
        self._lease, self._renewed = lease, renewed

    @property
    def until(self) -> float:
        """The current end of the lease."""
        return self._lease + max((moment for moment in self._renewed if moment <= self.now), default=0.0)

    def acquire(self) -> Acquired | Running:
        self.polls += 1
        return Running(FINGERPRINT, self.until - self.now) if self.now < self.until else Acquired(CLAIM)


def wait_for(duplicate: Duplicate, draws: list[float]) -> float:
    """Run the protocol of one request that waits for *duplicate*, and return the time at which it may run."""
    drawn = iter(draws * 1_000)
    steps = begin(KEY, FINGERPRINT, policy=Policy(), wait=1_000.0, random=lambda: next(drawn))
    action = next(steps)
    try:
        while True:
            if isinstance(action, Acquire):
                action = steps.send(duplicate.acquire())
            else:
                assert isinstance(action, Await)
                duplicate.now += min(action.poll, action.limit)
                action = steps.send(WaitEnded(duplicate.now))
    except StopIteration as end:
        verdict = end.value
    assert verdict == Execute(CLAIM, duplicate.now)
    return duplicate.now


DRAWS = st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=5)


@given(st.floats(0.1, 60), DRAWS)
def test_waiter_runs_within_31_ms_of_the_end_of_an_abandoned_lease(lease: float, draws: list[float]) -> None:
    moment = wait_for(Duplicate(lease, renewed=[]), draws)
    assert lease <= moment <= lease + 0.031


@given(st.floats(3, 30), st.integers(1, 9), DRAWS)
def test_waiter_polls_a_renewed_lease_rarely_and_runs_only_after_it_ends(
    lease: float, renewals: int, draws: list[float]
) -> None:
    last = renewals * lease / 3
    duplicate = Duplicate(lease, renewed=[number * lease / 3 for number in range(1, renewals + 1)])
    assert last + lease <= wait_for(duplicate, draws) <= last + lease + 0.031
    assert duplicate.polls <= 10 + 2 * (last + lease)
