"""
Decides what is recorded, and whether a record may be replayed.

A record comes from outside this process, so everything that is checked when it is written is checked again before its
replay. A record that this library cannot have written, or that a server could not send, raises `CorruptRecord`: the
client gets a problem document, never the record and never an internal error.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from idempotency._core.errors import (
    CorruptRecord,
    FirstRunFailed,
    NotReplayable,
    StoreError,
    UnknownRecordVersion,
)
from idempotency._core.headers import HeaderRules
from idempotency._core.outcome import (
    BODILESS,
    FINAL,
    Headers,
    Response,
    Unreplayable,
    Value,
    decode,
    encode_answer,
    encode_unreplayable,
    is_name,
    is_safe,
    recorded_headers,
)
from idempotency._core.policy import Policy
from idempotency._core.types import Completed, StorageKey, key_id

__all__ = ["check_seconds", "encode_recorded", "read_response", "read_value"]

LONGEST: Final = 1e12
"""Seconds, some 30,000 years: no store writes a longer duration."""

_WORDS = re.compile(r"[^\x00-\x1f\x7f]{1,500}")  # a reason, or the name of an exception


def check_seconds(*durations: float) -> StoreError | None:
    """The error for impossible durations (infinite, not a number, tens of thousands of years), or None."""
    for seconds in durations:
        if not -LONGEST <= seconds <= LONGEST:  # true for NaN
            return _impossible_time()
    return None


def _impossible_time() -> CorruptRecord:
    return CorruptRecord("the stored record has an impossible time; look at it before deleting it")


def encode_recorded(answer: Response, policy: Policy) -> tuple[bytes, str | None]:
    """
    The outcome to record for *answer* under *policy*, redacted, and the reason if it is a tombstone (E2), else None.

    The operation has already had its effect, so an answer that cannot be kept must not free the key.
    """
    drop = policy.header_rules.never_recorded
    reason = _unrecordable(answer, policy)
    if reason is None:
        if policy.redact is None:
            return encode_answer(answer, drop), None
        kept = recorded_headers(answer.headers, drop=drop, length=len(answer.body))
        try:
            answer = policy.redact(answer._replace(headers=kept))
            reason = _unrecordable(answer, policy)
            if reason is None:
                return encode_answer(answer, drop), None
        except Exception as error:
            reason = f"redaction raised {type(error).__name__}"  # no message: it may quote the body
    return encode_unreplayable(reason, answer.status), reason


def _unrecordable(answer: Response, policy: Policy) -> str | None:
    if answer.status not in FINAL:
        return f"status {answer.status} ends no exchange"
    if len(answer.body) > policy.max_response_bytes:
        return f"larger than {policy.max_response_bytes} bytes"
    return None


def read_response(completed: Completed, key: StorageKey, *, policy: Policy) -> Response:
    """
    The recorded response as it may be sent: without the headers that *policy* drops, and with exactly one
    Content-Length if the status allows a body (RFC 9110, 8.6).

    Raises:
        NotReplayable: It was not kept.
        UnknownRecordVersion: Written by a newer version of this library.
        CorruptRecord: Not a response that this library records; see the module's docstring.
    """
    outcome = _decoded(completed, key)
    if not isinstance(outcome, Response):
        raise CorruptRecord(
            "the record is the value of a decorated function, not a response: a decorator and a middleware share a key"
        )
    status, headers, body, _ = outcome
    if status not in FINAL:
        raise _corrupt("a status that ends no exchange")
    length = None if status in BODILESS else b"%d" % len(body)
    if body and length is None:
        raise _corrupt(f"a body with status {status}")
    limit = policy.max_response_bytes
    if len(body) > limit:
        raise _corrupt(f"a body above this policy's max_response_bytes ({limit}; raise it if it was lowered)")
    _check(headers, policy.header_rules, length)
    return outcome


def read_value(completed: Completed, key: StorageKey, *, max_bytes: int) -> Value:
    """
    Reads the value that a decorated function's codec encoded, from `{"returned": ...}`.

    Raises:
        FirstRunFailed: The run raised, and its policy keeps exceptions.
        NotReplayable, UnknownRecordVersion: See `read_response`.
        CorruptRecord: Not a value that this library records.
    """
    outcome = _decoded(completed, key)
    match outcome:
        case Value(value={"raised": str(name)}) if _WORDS.fullmatch(name):
            raise FirstRunFailed(key_id=key_id(key), error=name)
        case Value(value={"returned": _}):
            if len(completed.outcome) > max_bytes:
                raise _corrupt(
                    f"a value above this policy's max_response_bytes ({max_bytes}; raise it if it was lowered)"
                )
            return outcome
        case Response():
            raise UnknownRecordVersion("the record was not written by a decorated function; use another key")
    raise _corrupt("a value that no decorated function returned")


def _decoded(completed: Completed, key: StorageKey) -> Response | Value:
    if not (-LONGEST <= completed.age <= LONGEST and -LONGEST <= completed.expires_in <= LONGEST):
        raise _impossible_time()
    outcome = decode(completed.outcome)
    if isinstance(outcome, Unreplayable):
        if not _WORDS.fullmatch(outcome.reason):
            raise _corrupt("a reason that this library does not give")
        raise NotReplayable(key_id=key_id(key), reason=outcome.reason)
    return outcome


def _check(headers: Headers, rules: HeaderRules, length: bytes | None) -> None:
    """
    Check that *headers* may be sent; remove those that the policy drops, and add a Content-Length if there is none.

    A header that this library never records shows that the record is not its own.

    Args:
        length: The Content-Length; None if the status allows no body.
    """
    never_recorded = rules.never_recorded
    values: list[bytes] = []
    has_length = drops = False
    for name, value in headers:
        values.append(value)
        if name == b"content-length":
            if has_length or value != (length or b"0"):
                raise _corrupt("a Content-Length that differs from the length of its body")
            has_length = True
        if not _is_replayed(name, never_recorded):
            if not is_name(name):
                raise _corrupt("a header that no server can send")
            if name in rules.forbidden:
                raise _corrupt("a header that is never recorded")
            drops = True
    if not is_safe(values):  # one check of all values: it looks at single characters only
        raise _corrupt("a header that no server can send")
    if drops:
        headers[:] = [pair for pair in headers if pair[0] not in never_recorded]
        has_length = has_length and b"content-length" not in never_recorded
    if length is not None and not has_length:
        headers.append((b"content-length", length))


@lru_cache(maxsize=256)  # an application uses few names, the same in each record
def _is_replayed(name: bytes, never_recorded: frozenset[bytes]) -> bool:
    """Whether *name* is a header name in lower case, as names are recorded (RFC 9110, 5.1 and 5.6.2), and kept."""
    return name not in never_recorded and is_name(name) is not None


def _corrupt(what: str) -> CorruptRecord:
    return CorruptRecord(
        f"the stored record has {what}: this library did not write it; look at it before deleting it"
    )
