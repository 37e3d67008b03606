"""Decides, by the policy of its request, what is recorded of an HTTP response, for every framework."""

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
    Makes the record of an answer: what `current_claim().outcome(answer)` shows, and what is stored.

    Args:
        traceparent: Gives the trace context to record, or None.
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
        *answer*, a `Response`, as it would be recorded.

        Raises:
            TypeError: *answer* is no `Response`.
        """
        return self.encode(require_response(answer), claim)[0]

    def encode(self, answer: Response, claim: Claim) -> tuple[bytes, Literal["kept", "unreplayable"]]:
        """
        The record of *answer*, and whether it can be replayed.

        A tombstone where the body is too large, the status ends no exchange, or redaction fails: the effect is there
        already, so that the key must not run again (E2).
        """
        return record_of(answer._replace(traceparent=self._traceparent()), self._policy, claim)


def require_response(answer: Any) -> Response:
    """
    *answer*, if it is a `Response`.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(answer, Response):
        raise TypeError(
            f"outcome() takes an idempotency.Response(status, headers, body), not a {type(answer).__qualname__}"
        )
    return answer


def record_of(
    answer: Response, policy: Policy, claim: Claim
) -> tuple[bytes, Literal["kept", "unreplayable"]]:
    """`AnswerEncoder.encode` of an answer that has its trace context."""
    outcome, reason = encode_recorded(answer, policy)
    if reason is None:
        return outcome, "kept"
    _log.error("%s: the answer is not kept, its retries get 409 (key %s)", reason, key_id(claim.key))
    return outcome, "unreplayable"
