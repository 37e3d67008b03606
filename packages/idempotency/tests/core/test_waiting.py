"""Waiting for a concurrent duplicate: the protocol alone, over a clock that the test moves."""

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
    """A store that holds another owner's claim; *renewed* are the moments at which that owner renews its lease."""

    def __init__(self, lease: float, renewed: list[float]) -> None:
        self.now, self.asked = 0.0, 0
        self._lease, self._renewed = lease, renewed

    @property
    def until(self) -> float:
        """The end of the lease, as it stands now."""
        return self._lease + max((moment for moment in self._renewed if moment <= self.now), default=0.0)

    def acquire(self) -> Acquired | Running:
        self.asked += 1
        return Running(FINGERPRINT, self.until - self.now) if self.now < self.until else Acquired(CLAIM)


def wait_for(duplicate: Duplicate, draws: list[float]) -> float:
    """Play one request that waits for *duplicate*: the moment at which it may run."""
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
def test_a_waiter_for_a_dead_owner_runs_within_30_ms_of_the_leases_end(
    lease: float, draws: list[float]
) -> None:
    moment = wait_for(Duplicate(lease, renewed=[]), draws)
    assert lease <= moment <= lease + 0.031


@given(st.floats(3, 30), st.integers(1, 9), DRAWS)
def test_a_living_owner_is_asked_after_at_growing_intervals_and_never_succeeded(
    lease: float, renewals: int, draws: list[float]
) -> None:
    last = renewals * lease / 3
    duplicate = Duplicate(lease, renewed=[beat * lease / 3 for beat in range(1, renewals + 1)])
    assert last + lease <= wait_for(duplicate, draws) <= last + lease + 0.031
    assert duplicate.asked <= 10 + 2 * (last + lease)
