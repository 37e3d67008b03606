"""What is recorded of an HTTP answer, by the policy of its request; the same for every framework."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

from idempotency._core.outcome import (
    Headers,
    Response,
    encode_answer,
    encode_response,
    encode_unreplayable,
    recorded_headers,
)
from idempotency._core.policy import Policy
from idempotency._core.types import Claim, key_id

__all__ = ["AnswerEncoder"]

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
        if not isinstance(answer, Response):
            raise TypeError(
                f"outcome() takes an idempotency.Response(status, headers, body), not a {type(answer).__qualname__}"
            )
        return self.encode(answer, claim)[0]

    def encode(self, answer: Response, claim: Claim) -> tuple[bytes, Literal["kept", "unreplayable"]]:
        """
        The record of *answer*, and whether it can be replayed.

        A tombstone where the body is too large or redaction fails: the effect is there already, so that the key must
        not run again (E2).
        """
        policy, (status, headers, body, _) = self._policy, answer
        if len(body) > policy.max_response_bytes:
            return encode_unreplayable(
                f"larger than {policy.max_response_bytes} bytes", status
            ), "unreplayable"
        drop, traceparent = policy.wire.never_recorded, self._traceparent()
        if policy.redact is None:
            return encode_answer(status, headers, body, traceparent, drop=drop), "kept"
        kept: Headers = recorded_headers(headers, drop=drop, length=len(body))
        try:
            return encode_response(policy.redact(Response(status, kept, body, traceparent))), "kept"
        except Exception as error:
            reason = f"redaction raised {type(error).__name__}"  # not what it says: that may quote the body
        _log.error("%s: the answer is not kept, its retries get 409 (key %s)", reason, key_id(claim.key))
        return encode_unreplayable(reason, status), "unreplayable"
