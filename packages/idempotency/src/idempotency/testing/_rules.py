"""The rules of `docs/store-contract.md`, one by one, as tests that every store inherits."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator

import pytest

from idempotency._core.types import Acquired, Claim, Completed, Fingerprint, Running, State, StorageKey
from idempotency.testing._clock import Clock, FakeClock
from idempotency.testing._subject import FINGERPRINT, OUTCOME, OpenStore, Subject, open_subject

__all__ = [
    "Contract",
    "R1AcquireIsOneAtomicStep",
    "R2AcquireIsIdempotentPerOwner",
    "R3CompleteBelongsToTheOwner",
    "R4RenewNeverShortens",
    "R5ReleaseForgetsRunningClaimsOnly",
    "R6DurationsCrossTheBoundary",
    "R7RecordsLiveAsLongAsTheyWereGiven",
    "R8EveryCallIsSafeToRepeat",
    "R9TheFenceRises",
]

OTHER = Fingerprint(b"\x02" * 32)


class Contract(ABC):
    """The base class of the tests of each rule; the store is opened for each test."""

    @abstractmethod
    def open_store(self, clock: Clock) -> OpenStore:
        """A context manager that opens the store under test: async for a `Store`, plain for a `SyncStore`."""

    def make_clock(self) -> Clock:
        """The clock that the contract moves; a `RealClock` if the store does not take a clock."""
        return FakeClock()

    @pytest.fixture
    def subject(self) -> Iterator[Subject]:
        clock = self.make_clock()
        with open_subject(self.open_store(clock), clock) as subject:
            yield subject


class R1AcquireIsOneAtomicStep(Contract):
    """`acquire` decides and writes in one atomic step."""

    def test_r1_an_absent_key_is_granted_as_a_first_attempt(self, subject: Subject) -> None:
        key, owner = subject.key(), subject.owner()
        reply = subject.acquire(key, owner=owner)
        assert isinstance(reply, Acquired)
        assert (reply.claim.key, reply.claim.owner, reply.claim.attempt) == (key, owner, 1)
        assert reply.claim.fence > 0

    def test_r1_a_held_key_says_who_runs_and_for_how_long(self, subject: Subject) -> None:
        key = subject.key()
        _, granted = subject.timed(lambda: subject.claim(key, lease=subject.long))
        reply, asked = subject.timed(lambda: subject.acquire(key, fingerprint=OTHER))
        assert isinstance(reply, Running)
        assert reply.fingerprint == FINGERPRINT
        assert reply.lease_left in granted + subject.long - asked

    def test_r1_a_completed_key_gives_its_outcome_byte_for_byte(self, subject: Subject) -> None:
        claim = subject.claim(subject.key())
        _, done = subject.timed(lambda: subject.complete(claim, OUTCOME, retention=subject.long))
        reply, asked = subject.timed(lambda: subject.acquire(claim.key, fingerprint=OTHER))
        assert isinstance(reply, Completed)
        assert (reply.fingerprint, reply.outcome) == (FINGERPRINT, OUTCOME)
        assert reply.age in asked - done
        assert reply.expires_in in done + subject.long - asked

    def test_r1_a_lapsed_key_passes_to_the_same_request(self, subject: Subject) -> None:
        first = subject.claim(subject.key(), lease=subject.short)
        subject.pass_time(subject.short)
        second = subject.claim(first.key)
        assert second.attempt == 2
        assert second.owner != first.owner

    def test_r1_a_lapsed_key_does_not_pass_to_another_request(self, subject: Subject) -> None:
        claim = subject.claim(subject.key(), lease=subject.short)
        subject.pass_time(2 * subject.short)
        assert subject.acquire(claim.key, fingerprint=OTHER) == Running(FINGERPRINT, 0.0)
        assert subject.complete(claim), "the refused request must not have written anything"

    def test_r1_a_lapsed_key_does_not_pass_where_takeover_is_forbidden(self, subject: Subject) -> None:
        claim = subject.claim(subject.key(), lease=subject.short)
        subject.pass_time(2 * subject.short)
        assert subject.acquire(claim.key, takeover=False) == Running(FINGERPRINT, 0.0)
        assert subject.complete(claim), "the refused request must not have written anything"

    def test_r1_keys_that_differ_in_one_character_or_its_case_are_two(self, subject: Subject) -> None:
        long = (subject.key() + "-" + secrets.token_hex(800))[:1600]  # the longest name, less one character
        for number, last in enumerate("aAb"):
            assert subject.claim(StorageKey(long + last)).attempt == 1, f"{number} such keys were one"

    def test_r1_a_fingerprint_is_32_bytes_whatever_they_are(self, subject: Subject) -> None:
        fingerprint, close = (
            Fingerprint(bytes(range(0, 256, 8))),
            Fingerprint(bytes(range(0, 256, 8))[:-1] + b"\xff"),
        )
        key = subject.key()
        subject.acquire(key, fingerprint=fingerprint, lease=subject.short)
        subject.pass_time(subject.short)
        assert subject.acquire(key, fingerprint=close) == Running(fingerprint, 0.0)
        assert isinstance(subject.acquire(key, fingerprint=fingerprint), Acquired)

    def test_r1_an_outcome_of_more_than_a_mebibyte_is_given_back_whole(self, subject: Subject) -> None:
        outcome = b'{"body":"%b"}' % (b"0123456789abcdef" * 90_000)
        claim = subject.claim(subject.key())
        assert subject.complete(claim, outcome) is True
        reply = subject.acquire(claim.key)
        assert isinstance(reply, Completed)
        assert reply.outcome == outcome

    def test_r1_one_of_many_at_once_is_granted_a_free_key(self, subject: Subject) -> None:
        replies = subject.race([subject.owner() for _ in range(16)], subject.key())
        assert [type(reply) for reply in replies].count(Acquired) == 1

    def test_r1_one_of_many_at_once_takes_over_a_lapsed_key(self, subject: Subject) -> None:
        key = subject.claim(subject.key(), lease=subject.short).key
        subject.pass_time(subject.short)
        granted = [
            r.claim
            for r in subject.race([subject.owner() for _ in range(16)], key)
            if isinstance(r, Acquired)
        ]
        assert [claim.attempt for claim in granted] == [2]


class R2AcquireIsIdempotentPerOwner(Contract):
    """An owner whose reply was lost calls `acquire` again and gets its claim."""

    def test_r2_the_same_owner_gets_the_same_claim(self, subject: Subject) -> None:
        claim = subject.claim(subject.key())
        assert subject.acquire(claim.key, owner=claim.owner) == Acquired(claim)

    def test_r2_the_same_owner_gets_its_claim_back_after_a_lapse(self, subject: Subject) -> None:
        claim = subject.claim(subject.key(), lease=subject.short)
        subject.pass_time(subject.short)
        assert subject.acquire(claim.key, owner=claim.owner, lease=subject.long) == Acquired(claim)
        assert isinstance(subject.acquire(claim.key), Running), "the lease counts from the repeated call"

    def test_r2_a_repeated_call_never_shortens_the_lease(self, subject: Subject) -> None:
        claim = subject.claim(subject.key(), lease=subject.long)
        assert subject.acquire(claim.key, owner=claim.owner, lease=subject.short) == Acquired(claim)
        subject.pass_time(subject.short)
        assert isinstance(subject.acquire(claim.key), Running)

    def test_r2_one_owner_asking_many_times_at_once_has_one_claim(self, subject: Subject) -> None:
        owner = subject.owner()
        replies = subject.race([owner] * 8, subject.key())
        assert all(reply == replies[0] for reply in replies)
        assert isinstance(replies[0], Acquired)


class R3CompleteBelongsToTheOwner(Contract):
    """Only the claim that holds the key may record an outcome, once."""

    def test_r3_the_owner_completes(self, subject: Subject) -> None:
        claim = subject.claim(subject.key())
        assert subject.complete(claim) is True

    def test_r3_a_late_owner_completes_if_nobody_took_over(self, subject: Subject) -> None:
        claim = subject.claim(subject.key(), lease=subject.short)
        subject.pass_time(subject.short)
        assert subject.complete(claim) is True

    def test_r3_an_owner_that_was_taken_over_changes_nothing(self, subject: Subject) -> None:
        stale = subject.claim(subject.key(), lease=subject.short)
        subject.pass_time(subject.short)
        holder = subject.claim(stale.key)
        assert subject.complete(stale, b'{"late":1}') is False
        assert subject.complete(holder) is True
        assert subject.complete(stale, b'{"late":2}') is False
        record = subject.get(stale.key)
        assert record is not None
        assert record.outcome == OUTCOME

    def test_r3_a_repeat_is_true_and_the_first_outcome_stays(self, subject: Subject) -> None:
        claim = subject.claim(subject.key())
        assert subject.complete(claim, OUTCOME) is True
        assert subject.complete(claim, b'{"second":1}') is True
        reply = subject.acquire(claim.key)
        assert isinstance(reply, Completed)
        assert reply.outcome == OUTCOME

    def test_r3_nobody_completes_a_key_that_is_not_there(self, subject: Subject) -> None:
        key = subject.key()
        assert subject.complete(Claim(key, subject.owner(), 1, 1)) is False
        assert subject.get(key) is None


class R4RenewNeverShortens(Contract):
    """A renewal may extend a lease, but never shorten it."""

    def test_r4_a_renewed_claim_is_held_longer(self, subject: Subject) -> None:
        claim = subject.claim(subject.key(), lease=subject.short)
        assert subject.renew(claim, lease=subject.long) is True
        subject.pass_time(2 * subject.short)
        assert isinstance(subject.acquire(claim.key), Running)

    def test_r4_a_shorter_lease_changes_nothing(self, subject: Subject) -> None:
        claim = subject.claim(subject.key(), lease=subject.long)
        assert subject.renew(claim, lease=subject.short) is True
        subject.pass_time(2 * subject.short)
        reply = subject.acquire(claim.key)
        assert isinstance(reply, Running)
        assert reply.lease_left > subject.long / 2

    def test_r4_a_lapsed_claim_is_renewed_if_nobody_took_over(self, subject: Subject) -> None:
        claim = subject.claim(subject.key(), lease=subject.short)
        subject.pass_time(subject.short)
        assert subject.renew(claim) is True
        assert isinstance(subject.acquire(claim.key), Running)

    def test_r4_a_lost_or_settled_claim_is_not_renewed(self, subject: Subject) -> None:
        stale = subject.claim(subject.key(), lease=subject.short)
        subject.pass_time(subject.short)
        holder = subject.claim(stale.key)
        assert subject.renew(stale) is False
        subject.complete(holder)
        assert subject.renew(holder) is False


class R5ReleaseForgetsRunningClaimsOnly(Contract):
    """R5: release forgets a running claim, never a completed one."""

    def test_r5_a_released_key_is_free(self, subject: Subject) -> None:
        claim = subject.claim(subject.key())
        assert subject.release(claim) is True
        assert subject.get(claim.key) is None
        assert subject.claim(claim.key).attempt == 1

    def test_r5_a_completed_record_stays(self, subject: Subject) -> None:
        claim = subject.claim(subject.key())
        subject.complete(claim)
        assert subject.release(claim) is False
        assert isinstance(subject.acquire(claim.key), Completed)

    def test_r5_a_stale_owner_does_not_release_its_successor(self, subject: Subject) -> None:
        stale = subject.claim(subject.key(), lease=subject.short)
        subject.pass_time(subject.short)
        holder = subject.claim(stale.key)
        assert subject.release(stale) is False
        assert subject.complete(holder) is True

    def test_r5_a_claim_that_was_never_confirmed_is_released_by_its_owner_alone(
        self, subject: Subject
    ) -> None:
        claim = subject.claim(subject.key())
        assert subject.release(Claim(claim.key, claim.owner, 1, 0)) is True
        assert subject.get(claim.key) is None


class R6DurationsCrossTheBoundary(Contract):
    """Only the store's clock counts; callers pass durations in seconds."""

    def test_r6_what_is_left_shrinks_as_the_clock_moves(self, subject: Subject) -> None:
        claim, granted = subject.timed(lambda: subject.claim(subject.key(), lease=subject.long))
        subject.pass_time(3 * subject.short)
        reply, asked = subject.timed(lambda: subject.acquire(claim.key))
        assert isinstance(reply, Running)
        assert reply.lease_left in granted + subject.long - asked

    def test_r6_a_record_describes_itself_in_durations(self, subject: Subject) -> None:
        claim, granted = subject.timed(lambda: subject.claim(subject.key(), lease=subject.short))
        subject.pass_time(subject.short)
        record, asked = subject.timed(lambda: subject.get(claim.key))
        assert record is not None
        assert (record.state, record.owner, record.fence) == (State.RUNNING, claim.owner, claim.fence)
        assert record.lease_left in granted + subject.short - asked
        assert record.expires_in in granted + subject.short + subject.long - asked


class R7RecordsLiveAsLongAsTheyWereGiven(Contract):
    """Expiry is a comparison: a record exists until its time is over, and not a moment longer."""

    def test_r7_a_lapsed_claim_is_remembered_for_its_retention(self, subject: Subject) -> None:
        claim = subject.claim(subject.key(), lease=subject.short, retention=subject.long)
        subject.pass_time(3 * subject.short)
        assert subject.claim(claim.key).attempt == 2

    def test_r7_an_abandoned_claim_is_forgotten_after_lease_and_retention(self, subject: Subject) -> None:
        claim = subject.claim(subject.key(), lease=subject.short, retention=subject.short)
        subject.pass_time(2 * subject.short)
        assert subject.get(claim.key) is None
        assert subject.complete(claim) is False
        assert subject.renew(claim) is False
        assert subject.release(claim) is False
        assert subject.claim(claim.key).attempt == 1

    def test_r7_renewal_moves_the_end_of_the_record_too(self, subject: Subject) -> None:
        claim = subject.claim(subject.key(), lease=subject.long, retention=subject.long)
        _, renewed = subject.timed(lambda: subject.renew(claim, lease=2 * subject.long))
        record, asked = subject.timed(lambda: subject.get(claim.key))
        assert record is not None
        assert record.expires_in in renewed + 3 * subject.long - asked

    def test_r7_a_takeover_brings_its_own_lease_and_retention(self, subject: Subject) -> None:
        key = subject.claim(subject.key(), lease=subject.short, retention=subject.long).key
        subject.pass_time(subject.short)
        claim, granted = subject.timed(lambda: subject.claim(key, retention=5 * subject.long))
        record, asked = subject.timed(lambda: subject.get(key))
        assert record is not None
        assert record.expires_in in granted + 6 * subject.long - asked
        _, renewed = subject.timed(lambda: subject.renew(claim, lease=2 * subject.long))
        record, asked = subject.timed(lambda: subject.get(key))
        assert record is not None
        assert record.expires_in in renewed + 7 * subject.long - asked

    def test_r7_completion_starts_its_own_retention(self, subject: Subject) -> None:
        claim = subject.claim(subject.key(), lease=subject.long, retention=subject.long)
        subject.complete(claim, retention=subject.short)
        subject.pass_time(subject.short)
        assert subject.get(claim.key) is None
        assert subject.claim(claim.key).attempt == 1

    def test_r7_neither_replays_nor_repeats_extend_a_record(self, subject: Subject) -> None:
        claim = subject.claim(subject.key())
        _, done = subject.timed(lambda: subject.complete(claim, retention=subject.long))
        subject.acquire(claim.key, retention=9 * subject.long)
        subject.complete(claim, retention=9 * subject.long)
        reply, asked = subject.timed(lambda: subject.acquire(claim.key))
        assert isinstance(reply, Completed)
        assert reply.expires_in in done + subject.long - asked

    def test_r7_an_expired_record_is_not_brought_back(self, subject: Subject) -> None:
        claim = subject.claim(subject.key())
        subject.complete(claim, retention=subject.short)
        subject.pass_time(subject.short)
        assert subject.complete(claim) is False
        assert subject.get(claim.key) is None


class R8EveryCallIsSafeToRepeat(Contract):
    """A caller that got no answer may repeat the call, with the same result."""

    def test_r8_every_call_of_a_life_made_twice_leaves_the_same_record(self, subject: Subject) -> None:
        claim = subject.claim(subject.key())
        assert subject.acquire(claim.key, owner=claim.owner) == Acquired(claim)
        assert [subject.renew(claim) for _ in range(2)] == [True, True]
        assert [subject.complete(claim) for _ in range(2)] == [True, True]
        record = subject.get(claim.key)
        assert record is not None
        assert (record.attempt, record.fence, record.outcome) == (1, claim.fence, OUTCOME)

    def test_r8_a_repeated_release_does_not_harm_the_next_claim(self, subject: Subject) -> None:
        claim = subject.claim(subject.key())
        subject.release(claim)
        successor = subject.claim(claim.key)
        assert subject.release(claim) is False
        assert subject.complete(successor) is True


class R9TheFenceRises(Contract):
    """Each grant of a key has a larger fence than all earlier grants."""

    def test_r9_across_release_takeover_completion_and_expiry(self, subject: Subject) -> None:
        key = subject.key()
        released = subject.claim(key)
        subject.release(released)
        abandoned = subject.claim(key, lease=subject.short)
        subject.pass_time(subject.short)
        completed = subject.claim(key)
        subject.complete(completed, retention=subject.short)
        subject.pass_time(subject.short)
        forgotten = subject.claim(key, lease=subject.short, retention=subject.short)
        subject.pass_time(2 * subject.short)
        last = subject.claim(key)
        fences = [claim.fence for claim in (released, abandoned, completed, forgotten, last)]
        assert fences == sorted(set(fences))
