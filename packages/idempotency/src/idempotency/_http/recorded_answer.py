"""Encodes the record of an HTTP response under the policy of its request, for every framework."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

from idempotency._core.outcome import Response
from idempotency._core.policy import Policy
from idempotency._core.recorded import encode_recorded
from idempotency._core.types import Claim, key_id

__all__ = ["AnswerEncoder", "record_of", "require_response"]

_log = logging.getLogger("idempotency")


class AnswerEncoder:
    """
    Encodes answers as outcomes, both for the store and for `current_claim().outcome(answer)`.

    Args:
        traceparent: Returns the trace context to record, or None.
    """

    def __init__(self, policy: Policy, traceparent: Callable[[], str | None]) -> None:
        self._policy = policy
        self._traceparent = traceparent

    @property
    def retention(self) -> float:
        """Seconds, from the policy."""
        return self._policy.retention

    def outcome(self, answer: Any, claim: Claim) -> bytes:
        """
        *answer* as it would be recorded.

        Raises:
            TypeError: *answer* is not a `Response`.
        """
        return self.encode(require_response(answer), claim)[0]

    def encode(self, answer: Response, claim: Claim) -> tuple[bytes, Literal["kept", "unreplayable"]]:
        """
        The outcome to record for *answer*, and whether it can be replayed.

        The outcome is a tombstone if the body is too large, the status is not final, or redaction fails: the operation
        has had its effect, so the key must not run again (E2).
        """
        return record_of(answer._replace(traceparent=self._traceparent()), self._policy, claim)


def require_response(answer: Any) -> Response:
    """
    *answer*, if it is a `Response`.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(answer, Response):
        raise TypeError(
            f"outcome() takes an idempotency.Response(status, headers, body), not a {type(answer).__qualname__}"
        )
    return answer


def record_of(
    answer: Response, policy: Policy, claim: Claim
) -> tuple[bytes, Literal["kept", "unreplayable"]]:
    """`AnswerEncoder.encode` for an answer that already has its trace context."""
    outcome, reason = encode_recorded(answer, policy)
    if reason is None:
        return outcome, "kept"
    _log.error("%s: the answer is not kept, its retries get 409 (key %s)", reason, key_id(claim.key))
    return outcome, "unreplayable"
