"""Builds the replay from a record, or raises the error that says why there is none."""

from __future__ import annotations

from idempotency._core.headers import AGE, EXPIRES_IN
from idempotency._core.outcome import Response
from idempotency._core.policy import Policy
from idempotency._core.recorded import read_response
from idempotency._core.types import Completed, StorageKey

__all__ = ["replay_answer"]


def replay_answer(completed: Completed, *, key: StorageKey, policy: Policy) -> Response:
    """
    The recorded answer, marked as a replay.

    Raises:
        NotReplayable: The operation is done, and its answer was not kept.
        CorruptRecord: Not a record of an HTTP answer, or not one that this library writes.
        UnknownRecordVersion: Written by a newer version of this library.
    """
    answer = read_response(completed, key, policy=policy)
    age, expires_in = b"%d" % completed.age, b"%d" % completed.expires_in
    answer.headers.extend((policy.header_rules.mark, (AGE, age), (EXPIRES_IN, expires_in)))
    return answer
