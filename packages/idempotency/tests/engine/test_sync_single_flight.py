"""Single flight of threads: one runs, the others follow it without the store, and one is promoted if it fails."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from patience import PATIENCE, until_sync

from idempotency import Completed, Fingerprint, FingerprintMismatch, InProgress, Policy, StorageKey
from idempotency._core.actions import Refuse, Replay
from idempotency.engine import Ask
from idempotency.engine.sync_single_flight import SyncSingleFlight
from idempotency.engine_sync import SyncEngine, SyncRun
from idempotency.stores.memory import SyncMemoryStore

KEY = StorageKey("orders:1")
SAME, OTHER = Fingerprint(b"\x01" * 32), Fingerprint(b"\x02" * 32)
OUTCOME = b'{"n":1}'
THREADS = 32


class CountsAcquires(SyncMemoryStore):
    """Counts the calls of acquire."""

    def __init__(self) -> None:
        super().__init__()
        self.acquires = 0

    def acquire(self, key: StorageKey, **asked: Any) -> Any:
        self.acquires += 1
        return super().acquire(key, **asked)


class Duplicates:
    """Threads that begin with one key: one runs, and the others follow it."""

    def __init__(self, **policy: Any) -> None:
        self.store = CountsAcquires()
        self.engine = SyncEngine(self.store)
        self.policy = Policy(**policy)
        self.threads = ThreadPoolExecutor(THREADS)

    def ask(self, *, wait: float = 0.0, fingerprint: Fingerprint = SAME) -> Any:
        return self.engine.begin(Ask(KEY, fingerprint, self.policy, "orders", wait))

    def followers(self, count: int, *, wait: float = 30.0) -> list[Future[Any]]:
        """The calls of *count* threads, once all of them follow the run that is in flight."""
        calls = [self.threads.submit(self.ask, wait=wait) for _ in range(count)]
        in_flight = self.engine.single_flight.find(KEY, SAME)
        assert in_flight is not None
        until_sync(lambda: in_flight.followers == count)
        return calls


@pytest.fixture
def duplicates() -> Any:
    duplicates = Duplicates()
    yield duplicates
    duplicates.threads.shutdown()
    assert len(duplicates.engine.single_flight) == 0, "a run was not removed"


def wait_for_promoted(calls: list[Future[Any]]) -> SyncRun:
    """The run of the one follower that is promoted; the others still wait."""
    until_sync(lambda: any(call.done() for call in calls))
    (call,) = [call for call in calls if call.done()]
    calls.remove(call)
    run = call.result()
    assert isinstance(run, SyncRun)
    return run


def test_one_thread_runs_and_the_others_replay_without_calling_the_store(
    duplicates: Duplicates,
) -> None:
    run = duplicates.ask()
    others = duplicates.followers(THREADS - 1)
    assert duplicates.store.acquires == 1
    run.keep(OUTCOME)
    for call in others:
        verdict = call.result(5)
        assert isinstance(verdict, Replay)
        assert verdict.completed.outcome == OUTCOME
        assert verdict.waited > 0
    assert duplicates.store.acquires == 1


def test_a_thread_may_wait_for_ever(duplicates: Duplicates) -> None:
    run = duplicates.ask()
    (other,) = duplicates.followers(1, wait=math.inf)
    run.keep(OUTCOME)
    assert isinstance(other.result(PATIENCE), Replay)


@pytest.mark.parametrize("failures", [1, 3])
def test_failure_promotes_exactly_one_follower(duplicates: Duplicates, failures: int) -> None:
    run = duplicates.ask()
    others = duplicates.followers(8)
    for failure in range(failures):
        run.release()
        run = wait_for_promoted(others)
        assert duplicates.store.acquires == 2 + failure
        assert not any(call.done() for call in others)
    run.keep(OUTCOME)
    assert all(isinstance(call.result(5), Replay) for call in others)
    assert duplicates.store.acquires == 1 + failures


def test_one_thread_polls_for_all_after_an_abandoned_run() -> None:
    duplicates = Duplicates(lease=0.2)
    duplicates.ask().abandon()
    assert len(duplicates.engine.single_flight) == 0
    first = duplicates.threads.submit(duplicates.ask, wait=30.0)
    until_sync(lambda: len(duplicates.engine.single_flight) == 1)
    others = duplicates.followers(8)
    run = first.result(5)
    assert (type(run), run.claim.attempt) == (SyncRun, 2)
    run.keep(OUTCOME)
    assert all(isinstance(call.result(5), Replay) for call in others)
    duplicates.threads.shutdown()
    assert len(duplicates.engine.single_flight) == 0


def test_outcome_found_by_the_polling_leader_is_shared_with_all_followers(
    duplicates: Duplicates,
) -> None:
    reply = duplicates.store.acquire(KEY, fingerprint=SAME, owner=b"o" * 16, lease=30.0, retention=60.0)
    first = duplicates.threads.submit(duplicates.ask, wait=30.0)
    until_sync(lambda: len(duplicates.engine.single_flight) == 1)
    others = duplicates.followers(8)
    asked = duplicates.store.acquires
    assert duplicates.store.complete(reply.claim, OUTCOME, retention=60.0)
    for call in (first, *others):
        verdict = call.result(5)
        assert isinstance(verdict, Replay)
        assert isinstance(verdict.completed, Completed)
    assert duplicates.store.acquires < asked + 8, "only the leader polled"


def test_polling_leader_that_times_out_promotes_a_follower(duplicates: Duplicates) -> None:
    reply = duplicates.store.acquire(KEY, fingerprint=SAME, owner=b"o" * 16, lease=30.0, retention=60.0)
    first = duplicates.threads.submit(duplicates.ask, wait=0.05)
    until_sync(lambda: len(duplicates.engine.single_flight) == 1)
    (other,) = duplicates.followers(1)
    assert isinstance(first.result(5), Refuse)
    assert duplicates.store.complete(reply.claim, OUTCOME, retention=60.0)
    assert isinstance(other.result(5), Replay)


def test_follower_timeout_is_refused_and_leaves_the_leader_in_place(duplicates: Duplicates) -> None:
    run = duplicates.ask()
    verdict = duplicates.ask(wait=0.05)
    assert isinstance(verdict, Refuse)
    assert isinstance(verdict.error, InProgress)
    assert duplicates.store.acquires == 2, "a last poll when the wait is over"
    (other,) = duplicates.followers(1)
    run.keep(OUTCOME)
    assert isinstance(other.result(5), Replay), "the run stays the leader after a follower has timed out"
    assert duplicates.store.acquires == 2


class Interrupt(BaseException):
    """Raised in a sleep or wait, as KeyboardInterrupt is in the main thread."""


def interrupt(*_: Any) -> Any:
    raise Interrupt


def test_interrupted_polling_leader_gives_up_the_lead(duplicates: Duplicates) -> None:
    duplicates.store.acquire(KEY, fingerprint=SAME, owner=b"o" * 16, lease=30.0, retention=60.0)
    duplicates.engine.sleep = interrupt
    with pytest.raises(Interrupt):
        duplicates.ask(wait=30.0)
    assert len(duplicates.engine.single_flight) == 0


def test_interrupted_follower_releases_nothing(
    duplicates: Duplicates, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = []
    monkeypatch.setattr(duplicates.engine, "release_late", lambda *asked: released.append(asked))
    run = duplicates.ask()
    with monkeypatch.context() as patch:
        patch.setattr(duplicates.engine.single_flight, "follow", interrupt)
        with pytest.raises(Interrupt):
            duplicates.ask(wait=30.0)
    assert (released, duplicates.store.acquires) == ([], 1), "a follower does not call the store"
    run.keep(OUTCOME)


def test_other_request_under_a_running_key_is_refused_without_waiting(
    duplicates: Duplicates, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = duplicates.ask()
    duplicates.engine.sleep = interrupt
    monkeypatch.setattr(duplicates.engine.single_flight, "follow", interrupt)
    verdict = duplicates.ask(wait=30.0, fingerprint=OTHER)
    assert isinstance(verdict.error, FingerprintMismatch)
    run.keep(OUTCOME)


def test_follower_interrupted_while_promoted_gives_up_the_lead() -> None:
    single_flight = SyncSingleFlight()
    in_flight = single_flight.lead(KEY, SAME)
    assert in_flight is not None
    wait_for = in_flight.changed.wait_for

    def interrupted(*args: Any) -> bool:
        in_flight.changed.wait_for = wait_for  # type: ignore[method-assign]
        wait_for(*args)
        raise KeyboardInterrupt

    in_flight.changed.wait_for = interrupted  # type: ignore[method-assign]
    raised: list[BaseException] = []

    def follow_and_be_interrupted() -> None:
        try:
            single_flight.follow(in_flight, KEY, 10.0)
        except KeyboardInterrupt as error:
            raised.append(error)

    thread = threading.Thread(target=follow_and_be_interrupted)
    thread.start()
    until_sync(lambda: in_flight.followers == 1)
    single_flight.hand_over(KEY, in_flight)
    thread.join(30)
    assert len(raised) == 1
    assert len(single_flight) == 0, "there is no other follower to promote"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_child_has_no_single_flight_and_can_end_the_inherited_run() -> None:
    program = """
import os, warnings
from idempotency import Fingerprint, Policy, StorageKey
from idempotency.engine import Ask
from idempotency.engine_sync import SyncEngine
from idempotency.stores.memory import SyncMemoryStore
warnings.simplefilter("ignore", DeprecationWarning)
engine = SyncEngine(SyncMemoryStore())
run = engine.begin(Ask(StorageKey("k"), Fingerprint(b"f" * 32), Policy(), "orders", 0.0))
child = os.fork()
if child == 0:
    assert len(engine.single_flight) == 0
    run.keep(b"{}")
    again = engine.begin(Ask(StorageKey("k"), Fingerprint(b"f" * 32), Policy(), "orders", 5.0))
    os._exit(type(again).__name__ != "Replay")
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert len(engine.single_flight) == 1
run.keep(b"{}")
assert len(engine.single_flight) == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
