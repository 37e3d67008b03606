"""Duplicates in threads: one runs, the others wait for it, not for the store; if it fails exactly one of them runs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from patience import until_sync

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


class Counting(SyncMemoryStore):
    """Counts how often it is asked for the claim."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def acquire(self, key: StorageKey, **asked: Any) -> Any:
        self.asked += 1
        return super().acquire(key, **asked)


class Duplicates:
    """Threads that ask for one key and wait; each either runs, as it is told, or hears of the run."""

    def __init__(self, **policy: Any) -> None:
        self.store = Counting()
        self.engine = SyncEngine(self.store)
        self.policy = Policy(**policy)
        self.threads = ThreadPoolExecutor(THREADS)

    def ask(self, *, wait: float = 0.0, fingerprint: Fingerprint = SAME) -> Any:
        return self.engine.begin(Ask(KEY, fingerprint, self.policy, "orders", wait))

    def followers(self, count: int) -> list[Future[Any]]:
        """So many threads, once all of them follow the in_flight that there is."""
        calls = [self.threads.submit(self.ask, wait=30.0) for _ in range(count)]
        in_flight = self.engine.single_flight.find(KEY, SAME)
        assert in_flight is not None
        until_sync(lambda: in_flight.followers == count)
        return calls


@pytest.fixture
def duplicates() -> Any:
    duplicates = Duplicates()
    yield duplicates
    duplicates.threads.shutdown()
    assert len(duplicates.engine.single_flight) == 0, "a run was left behind"


def the_one_that_runs(calls: list[Future[Any]]) -> SyncRun:
    """The run of the one call that is answered; the others still wait."""
    until_sync(lambda: any(call.done() for call in calls))
    (call,) = [call for call in calls if call.done()]
    calls.remove(call)
    run = call.result()
    assert isinstance(run, SyncRun)
    return run


def test_one_of_many_threads_runs_and_the_others_replay_without_asking_the_store(
    duplicates: Duplicates,
) -> None:
    run = duplicates.ask()
    others = duplicates.followers(THREADS - 1)
    assert duplicates.store.asked == 1
    run.keep(OUTCOME)
    for call in others:
        verdict = call.result(5)
        assert isinstance(verdict, Replay)
        assert verdict.completed.outcome == OUTCOME
        assert verdict.waited > 0
    assert duplicates.store.asked == 1


@pytest.mark.parametrize("failures", [1, 3])
def test_a_failure_lets_exactly_one_of_the_others_run(duplicates: Duplicates, failures: int) -> None:
    run = duplicates.ask()
    others = duplicates.followers(8)
    for failure in range(failures):
        run.release()
        run = the_one_that_runs(others)
        assert duplicates.store.asked == 2 + failure
        assert not any(call.done() for call in others)
    run.keep(OUTCOME)
    assert all(isinstance(call.result(5), Replay) for call in others)
    assert duplicates.store.asked == 1 + failures


def test_after_an_abandoned_run_one_thread_watches_its_lease_for_all() -> None:
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


def test_an_outcome_found_by_a_watching_thread_is_shared_with_all_followers(
    duplicates: Duplicates,
) -> None:
    reply = duplicates.store.acquire(KEY, fingerprint=SAME, owner=b"o" * 16, lease=30.0, retention=60.0)
    first = duplicates.threads.submit(duplicates.ask, wait=30.0)
    until_sync(lambda: len(duplicates.engine.single_flight) == 1)
    others = duplicates.followers(8)
    asked = duplicates.store.asked
    assert duplicates.store.complete(reply.claim, OUTCOME, retention=60.0)
    for call in (first, *others):
        verdict = call.result(5)
        assert isinstance(verdict, Replay)
        assert isinstance(verdict.completed, Completed)
    assert duplicates.store.asked < asked + 8, "who watched asked for all"


def test_a_watching_thread_whose_patience_ends_hands_the_lead_on(duplicates: Duplicates) -> None:
    reply = duplicates.store.acquire(KEY, fingerprint=SAME, owner=b"o" * 16, lease=30.0, retention=60.0)
    first = duplicates.threads.submit(duplicates.ask, wait=0.05)
    until_sync(lambda: len(duplicates.engine.single_flight) == 1)
    (other,) = duplicates.followers(1)
    assert isinstance(first.result(5), Refuse)
    assert duplicates.store.complete(reply.claim, OUTCOME, retention=60.0)
    assert isinstance(other.result(5), Replay)


def test_a_wait_past_its_limit_ends_in_409(duplicates: Duplicates) -> None:
    run = duplicates.ask()
    verdict = duplicates.ask(wait=0.05)
    assert isinstance(verdict, Refuse)
    assert isinstance(verdict.error, InProgress)
    assert duplicates.store.asked == 2, "once, when its time was up"
    (other,) = duplicates.followers(1)
    run.keep(OUTCOME)
    assert isinstance(other.result(5), Replay), "who runs leads on, whoever gave up"
    assert duplicates.store.asked == 2


class Interrupt(BaseException):
    """Raised as a signal raises KeyboardInterrupt, in the main thread's sleep or wait."""


def interrupt(*_: Any) -> Any:
    raise Interrupt


def test_a_watching_thread_that_is_interrupted_leads_no_longer(duplicates: Duplicates) -> None:
    duplicates.store.acquire(KEY, fingerprint=SAME, owner=b"o" * 16, lease=30.0, retention=60.0)
    duplicates.engine.sleep = interrupt
    with pytest.raises(Interrupt):
        duplicates.ask(wait=30.0)
    assert len(duplicates.engine.single_flight) == 0


def test_a_following_thread_that_is_interrupted_has_nothing_to_release(
    duplicates: Duplicates, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = []
    monkeypatch.setattr(duplicates.engine, "release_late", lambda *asked: released.append(asked))
    run = duplicates.ask()
    with monkeypatch.context() as patch:
        patch.setattr(duplicates.engine.single_flight, "follow", interrupt)
        with pytest.raises(Interrupt):
            duplicates.ask(wait=30.0)
    assert (released, duplicates.store.asked) == ([], 1), "it never asked the store"
    run.keep(OUTCOME)


def test_another_request_under_the_key_is_refused_at_once(duplicates: Duplicates) -> None:
    run = duplicates.ask()
    verdict = duplicates.ask(wait=30.0, fingerprint=OTHER)
    assert isinstance(verdict.error, FingerprintMismatch)
    run.keep(OUTCOME)


def test_an_interruption_in_the_moment_of_promotion_hands_the_lead_on() -> None:
    single_flight = SyncSingleFlight()
    in_flight = single_flight.lead(KEY, SAME)
    assert in_flight is not None
    truly = in_flight.changed.wait_for

    def interrupted(*args: Any) -> bool:
        in_flight.changed.wait_for = truly  # type: ignore[method-assign]
        truly(*args)
        raise KeyboardInterrupt

    in_flight.changed.wait_for = interrupted  # type: ignore[method-assign]
    raised: list[BaseException] = []

    def unlucky() -> None:
        try:
            single_flight.follow(in_flight, KEY, 10.0)
        except KeyboardInterrupt as error:
            raised.append(error)

    thread = threading.Thread(target=unlucky)
    thread.start()
    until_sync(lambda: in_flight.followers == 1)
    single_flight.hand_over(KEY, in_flight)
    thread.join(30)
    assert len(raised) == 1
    assert len(single_flight) == 0, "nobody else was there to lead"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_follows_nobody_and_ends_the_run_that_it_inherited() -> None:
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
