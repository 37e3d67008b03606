"""`@idempotent`: one effect per key, for coroutine functions and plain functions alike."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from decorated import Harness, charge

from idempotency import (
    Claim,
    FingerprintMismatch,
    FirstRunFailed,
    InProgress,
    OutcomeUnknown,
    Policy,
    StoreUnavailable,
    current_claim,
    idempotent,
    storage_key,
)
from idempotency._core.fingerprint import digest
from idempotency.events import Claimed, Refused, Replayed, Settled

pytestmark = pytest.mark.anyio


class TestOnce:
    async def test_second_call_gets_the_first_value_without_a_run(self, harness: Harness) -> None:
        guarded = harness.guard(charge)
        first = await harness.call(guarded, "o-1", 500)
        again = await harness.call(guarded, "o-1", 500)
        assert first == again == {"order": "o-1", "cents": 500}
        assert harness.runs == [("o-1", 500)]
        assert [type(event) for event in harness.events] == [Claimed, Settled, Replayed]

    async def test_call_with_another_key_runs(self, harness: Harness) -> None:
        guarded = harness.guard(charge)
        await harness.call(guarded, "o-1")
        await harness.call(guarded, "o-2")
        assert len(harness.runs) == 2

    async def test_same_key_of_two_operations_runs_twice(self, harness: Harness) -> None:
        await harness.call(harness.guard(charge, operation="charge"), "o-1")
        await harness.call(harness.guard(charge, operation="refund"), "o-1")
        assert len(harness.runs) == 2

    async def test_same_key_with_other_arguments_is_a_mismatch(self, harness: Harness) -> None:
        guarded = harness.guard(charge)
        await harness.call(guarded, "o-1", 100)
        with pytest.raises(FingerprintMismatch):
            await harness.call(guarded, "o-1", 200)
        assert len(harness.runs) == 1
        refused = harness.events[-1]
        assert isinstance(refused, Refused)
        assert (refused.problem, refused.status, refused.operation) == ("key-reused", 422, "charge")

    async def test_default_given_explicitly_is_the_same_call(self, harness: Harness) -> None:
        guarded = harness.guard(charge)
        await harness.call(guarded, "o-1")
        assert await harness.call(guarded, order="o-1", cents=100) == {"order": "o-1", "cents": 100}
        assert len(harness.runs) == 1

    async def test_equal_value_counts_as_the_default_and_one_of_another_type_does_not(
        self, harness: Harness
    ) -> None:
        guarded = harness.guard(lambda order, weights=[1, 2.5]: order)
        await harness.call(guarded, "o-1")
        assert await harness.call(guarded, "o-1", [1, 2.5]) == "o-1"
        with pytest.raises(FingerprintMismatch):
            await harness.call(guarded, "o-1", [True, 2.5])

    async def test_fingerprint_function_decides_which_arguments_count(self, harness: Harness) -> None:
        guarded = harness.guard(lambda order, sent_at: order, fingerprint=lambda order, sent_at: order)
        await harness.call(guarded, "o-1", datetime(2026, 1, 1, tzinfo=UTC))
        assert await harness.call(guarded, "o-1", datetime(2026, 1, 2, tzinfo=UTC)) == "o-1"

    async def test_fingerprint_is_taken_before_the_function_modifies_its_arguments(
        self, harness: Harness
    ) -> None:
        def consume(order: str, lines: list[int]) -> int:
            total = sum(lines)
            lines.clear()
            return total

        guarded = harness.guard(consume)
        assert await harness.call(guarded, "o-1", [1, 2]) == 3
        assert await harness.call(guarded, "o-1", [1, 2]) == 3

    async def test_key_runs_again_after_the_retention(self, harness: Harness) -> None:
        guarded = harness.guard(charge, policy=Policy(retention=60))
        await harness.call(guarded, "o-1")
        harness.clock.advance(61)
        await harness.call(guarded, "o-1")
        assert len(harness.runs) == 2

    async def test_decorated_function_keeps_its_name_signature_and_kind(self, harness: Harness) -> None:
        guarded = harness.guard(charge)
        assert guarded.__name__ == "charge"
        assert inspect.signature(guarded) == inspect.signature(charge)
        assert inspect.iscoroutinefunction(guarded) == (harness.kind == "async")

    async def test_current_claim_is_set_inside_the_function_only(self, harness: Harness) -> None:
        seen: list[Claim] = []

        def observe(order: str) -> str:
            current = current_claim()
            assert current is not None
            seen.append(current.claim)
            return current.derive("mail")

        guarded = harness.guard(observe)
        derived = await harness.call(guarded, "o-1")
        assert derived == digest(b"derive", storage_key("charge", "o-1").encode(), b"mail").hex()[:32]
        assert seen[0].key == storage_key("charge", "o-1")
        assert current_claim() is None


class TestExceptions:
    async def test_exception_frees_the_key_by_default(self, harness: Harness) -> None:
        answers = iter([ValueError("declined"), None])

        def fail_once(order: str) -> str:
            if (error := next(answers)) is not None:
                raise error
            return order

        guarded = harness.guard(fail_once)
        with pytest.raises(ValueError, match="declined"):
            await harness.call(guarded, "o-1")
        assert await harness.call(guarded, "o-1") == "o-1"
        assert len(harness.runs) == 2

    async def test_kept_exception_is_reported_to_retries_by_its_class_only(self, harness: Harness) -> None:
        def fail(order: str) -> str:
            raise ValueError("card 4111111111111111 declined")

        guarded = harness.guard(fail, policy=Policy.at_most_once())
        with pytest.raises(ValueError, match="4111"):
            await harness.call(guarded, "o-1")
        with pytest.raises(FirstRunFailed, match="raised ValueError") as caught:
            await harness.call(guarded, "o-1")
        assert len(harness.runs) == 1
        record = await harness.record()
        assert b"4111" not in record.outcome
        again = pickle.loads(pickle.dumps(caught.value))
        assert (again.error, again.key_id, str(again)) == (
            "ValueError",
            caught.value.key_id,
            str(caught.value),
        )

    @pytest.mark.rule("E4")
    async def test_interrupt_leaves_the_key_to_its_lease(self, harness: Harness) -> None:
        class Interrupt(BaseException):
            pass

        def interrupted(order: str) -> str:
            if not harness.runs[1:]:
                raise Interrupt
            return order

        guarded = harness.guard(interrupted)
        with pytest.raises(Interrupt):
            await harness.call(guarded, "o-1")
        with pytest.raises(InProgress) as caught:
            await harness.call(guarded, "o-1")
        assert caught.value.retry_after >= 1
        harness.clock.advance(31)
        assert await harness.call(guarded, "o-1") == "o-1"
        claimed = [event.attempt for event in harness.events if isinstance(event, Claimed)]
        assert claimed == [1, 2]

    async def test_interrupt_makes_the_outcome_unknown_at_most_once(self, harness: Harness) -> None:
        def interrupted(order: str) -> str:
            raise KeyboardInterrupt

        guarded = harness.guard(interrupted, policy=Policy.at_most_once())
        with pytest.raises(KeyboardInterrupt):
            await harness.call(guarded, "o-1")
        harness.clock.advance(31)
        with pytest.raises(OutcomeUnknown):
            await harness.call(guarded, "o-1")
        assert len(harness.runs) == 1


class TestStoreFailures:
    @pytest.fixture
    def broken(self, harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Harness:
        inner = harness.store if harness.kind == "sync" else harness.store._store

        def fail(*args: Any, **kwargs: Any) -> Any:
            raise StoreUnavailable("down")

        monkeypatch.setattr(inner, "acquire", fail)
        return harness

    async def test_nothing_runs_if_the_store_is_unavailable(self, broken: Harness) -> None:
        guarded = broken.guard(charge)
        with pytest.raises(StoreUnavailable):
            await broken.call(guarded, "o-1")
        assert broken.runs == []

    async def test_bypass_policy_runs_without_a_claim_if_the_store_is_unavailable(
        self, broken: Harness
    ) -> None:
        guarded = broken.guard(charge, policy=Policy(on_store_error="bypass"))
        assert await broken.call(guarded, "o-1") == {"order": "o-1", "cents": 100}
        assert current_claim() is None

    @pytest.mark.rule("E8")
    async def test_lost_claim_returns_the_successors_value(self, harness: Harness) -> None:
        def stall(order: str) -> str:
            if not harness.runs[1:]:
                harness.clock.advance(31)
                inner = harness.store if harness.kind == "sync" else harness.store._store
                entry = inner.get(storage_key("charge", "o-1"))
                reply = inner.acquire(
                    entry.key, fingerprint=entry.fingerprint, owner=b"o" * 16, lease=30.0, retention=60.0
                )
                outcome = b'{"format":1,"outcome":"value","value":{"returned":"successor"}}'
                inner.complete(reply.claim, outcome, retention=60.0)
            return "late"

        assert await harness.call(harness.guard(stall), "o-1") == "successor"


class TestNesting:
    @pytest.mark.rule("E10")
    async def test_nested_call_with_the_same_key_joins_the_run(self, harness: Harness) -> None:
        guarded: Callable[..., Any]

        if harness.kind == "async":

            @idempotent(
                store=harness.store, operation="walk", key=lambda node, depth: node, fingerprint=_nothing
            )
            async def walk(node: str, depth: int) -> int:
                harness.runs.append(depth)
                return depth if depth == 0 else await walk(node, depth - 1)

            guarded = walk
        else:

            @idempotent(
                store=harness.store, operation="walk", key=lambda node, depth: node, fingerprint=_nothing
            )
            def walk_sync(node: str, depth: int) -> int:
                harness.runs.append(depth)
                return depth if depth == 0 else walk_sync(node, depth - 1)

            guarded = walk_sync
        assert await harness.call(guarded, "n", 2) == 0
        assert harness.runs == [2, 1, 0]

    @pytest.mark.rule("E10")
    async def test_nested_call_with_another_key_is_a_separate_operation(self, harness: Harness) -> None:
        inner = harness.guard(charge, operation="inner")
        if harness.kind == "async":

            @idempotent(store=harness.store, operation="outer", key=lambda order: order)
            async def outer(order: str) -> Any:
                return await inner(order)

            await outer("o-1")
        else:

            @idempotent(store=harness.store, operation="outer", key=lambda order: order)
            def outer_sync(order: str) -> Any:
                return inner(order)

            outer_sync("o-1")
        assert await harness.record(operation="inner") is not None
        assert await harness.record(operation="outer") is not None


def _nothing(*args: object) -> bytes:
    return b""
