"""The answer of a replay, from the record of the first run; and whatever stands in its way, as an error."""

from __future__ import annotations

from idempotency._core.errors import CorruptRecord, NotReplayable
from idempotency._core.headers import AGE, EXPIRES_IN
from idempotency._core.outcome import Response, Unreplayable, decode, replay_headers
from idempotency._core.policy import Policy
from idempotency._core.types import Completed, StorageKey, key_id

__all__ = ["replay_answer"]


def replay_answer(completed: Completed, *, key: StorageKey, policy: Policy) -> Response:
    """
    The recorded answer, marked as a replay.

    Raises:
        NotReplayable: The operation is done, and its answer was not kept.
        CorruptRecord: Not the record of an HTTP answer.
        UnknownRecordVersion: Written by a newer version of this library.
    """
    outcome = decode(completed.outcome)
    if isinstance(outcome, Unreplayable):
        raise NotReplayable(key_id=key_id(key), reason=outcome.reason)
    if not isinstance(outcome, Response):
        raise CorruptRecord("the record is a function's value, not a response: two users share its key")
    headers = [
        *replay_headers(outcome),
        policy.wire.mark,
        (AGE, b"%d" % completed.age),
        (EXPIRES_IN, b"%d" % completed.expires_in),
    ]
    return outcome._replace(headers=headers)
