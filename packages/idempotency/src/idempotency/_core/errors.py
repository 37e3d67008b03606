"""
The typed errors. Each message says what went wrong and what to do next.

Each class has the HTTP status and the slug of its problem document (RFC 9457). No error contains a raw key or a body;
`key_id` is twelve hex digits of a digest. All errors survive `pickle` and `copy` (E10).
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "BodyLost",
    "Answered",
    "CorruptRecord",
    "FingerprintMismatch",
    "FirstRunFailed",
    "IdempotencyError",
    "InProgress",
    "IncompleteRequest",
    "InvalidKey",
    "IsolationConflict",
    "LengthRequired",
    "MissingKey",
    "MissingTenant",
    "NotReplayable",
    "OutcomeUnknown",
    "RequestTimeout",
    "RequestTooLarge",
    "RunEnded",
    "StoreError",
    "StoreUnavailable",
    "UnknownRecordVersion",
    "as_store_error",
]


class IdempotencyError(Exception):
    """
    The base class of this library's errors. (`Answered`, which only ends a handler, is not an error.)

    Attributes:
        status: The HTTP status of the problem document.
        slug: The stable last part of the problem's `type`.
        title: A short, stable summary of the problem's type.
        retry_after: Whole seconds a client should wait before it tries again, or None where waiting does not help.
    """

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "error"
    title: ClassVar[str] = "The request could not be made idempotent"
    retry_after: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception.__reduce__ calls cls(*args), which fails for keyword-only constructors: rebuild without a call.
        return _rebuild, (type(self), self.args), self.__dict__


def _rebuild(cls: type[IdempotencyError], args: tuple[Any, ...]) -> IdempotencyError:
    error = cls.__new__(cls)
    error.args = args
    return error


class Answered(Exception):
    """
    Ends a handler whose request already has its answer: a replay or a problem document.

    Raised by `claim` under `LateClaim`, which sends that answer and drops what the application sends afterwards. Do
    not catch it: a handler that goes on would repeat the effect.
    """


class InvalidKey(IdempotencyError):
    """The Idempotency-Key header cannot be read as one key (draft -07, 2.1; RFC 9651, 3.3.3)."""

    status: ClassVar[int] = 400
    slug: ClassVar[str] = "invalid-key"
    title: ClassVar[str] = "The Idempotency-Key header cannot be read"


class MissingKey(IdempotencyError):
    """The operation requires an Idempotency-Key and got none (draft -07, 2.7)."""

    status: ClassVar[int] = 400
    slug: ClassVar[str] = "missing-key"
    title: ClassVar[str] = "An Idempotency-Key header is required"

    def __init__(
        self, message: str = "send the header Idempotency-Key: a new UUID for each new operation"
    ) -> None:
        super().__init__(message)


class MissingTenant(IdempotencyError):
    """The request does not say whose key this is; different users must not share one."""

    status: ClassVar[int] = 400
    slug: ClassVar[str] = "missing-tenant"
    title: ClassVar[str] = "The request does not say whose Idempotency-Key this is"


class FingerprintMismatch(IdempotencyError):
    """The key was already used for a different request (draft -07, 2.7)."""

    status: ClassVar[int] = 422
    slug: ClassVar[str] = "key-reused"
    title: ClassVar[str] = "The Idempotency-Key was used for a different request"

    def __init__(self, *, key_id: str) -> None:
        super().__init__(
            f"idempotency key {key_id} belongs to another request; send this one with a new key, "
            "or repeat the first one unchanged"
        )
        self.key_id = key_id


class InProgress(IdempotencyError):
    """The first request with this key is still running (draft -07, 2.7)."""

    status: ClassVar[int] = 409
    slug: ClassVar[str] = "in-progress"
    title: ClassVar[str] = "The first request with this Idempotency-Key is still running"

    def __init__(self, *, key_id: str, retry_after: int) -> None:
        super().__init__(
            f"the first request with idempotency key {key_id} is still running; "
            f"send it again, unchanged, in {retry_after} s"
        )
        self.key_id = key_id
        self.retry_after: int = retry_after


class OutcomeUnknown(IdempotencyError):
    """The run that held this key ended without an outcome, and the policy forbids a second one (at most once)."""

    status: ClassVar[int] = 409
    slug: ClassVar[str] = "outcome-unknown"
    title: ClassVar[str] = "The outcome of the first request is unknown"

    def __init__(self, *, key_id: str) -> None:
        super().__init__(
            f"the first request with idempotency key {key_id} stopped before its outcome was recorded and will not be "
            "run again under it; find out whether it took effect before you send it with a new key"
        )
        self.key_id = key_id


class NotReplayable(IdempotencyError):
    """The operation is done, and its response was not kept: streamed, endless or larger than the limit (E2)."""

    status: ClassVar[int] = 409
    slug: ClassVar[str] = "not-replayable"
    title: ClassVar[str] = "The first request is done; its response was not kept"

    def __init__(self, *, key_id: str, reason: str) -> None:
        super().__init__(
            f"the request with idempotency key {key_id} is done and will not run again, but its response was not kept "
            f"({reason}); read the result from the resource that the operation changed"
        )
        self.key_id = key_id
        self.reason = reason


class FirstRunFailed(IdempotencyError):
    """The decorated function raised on the first run with this key, and the policy keeps exceptions."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "first-run-failed"
    title: ClassVar[str] = "The first request with this Idempotency-Key failed"

    def __init__(self, *, key_id: str, error: str) -> None:
        super().__init__(
            f"the first run with idempotency key {key_id} raised {error} and will not be repeated under it; "
            "find out whether it took effect before you use a new key"
        )
        self.key_id = key_id
        self.error = error


class RequestTooLarge(IdempotencyError):
    """The body is larger than a keyed request may be; nothing ran."""

    status: ClassVar[int] = 413
    slug: ClassVar[str] = "request-too-large"
    title: ClassVar[str] = "The request body is too large for an idempotent request"

    def __init__(self, *, limit: int) -> None:
        super().__init__(f"a request with an Idempotency-Key may have at most {limit} bytes of body")
        self.limit = limit


class RequestTimeout(IdempotencyError):
    """The body of a keyed request did not arrive in time; nothing ran."""

    status: ClassVar[int] = 408
    slug: ClassVar[str] = "request-timeout"
    title: ClassVar[str] = "The request body did not arrive in time"

    def __init__(self, *, seconds: float) -> None:
        super().__init__(
            f"the body was not complete after {seconds:g} s; send the request again with the same key"
        )
        self.seconds = seconds


class BodyLost(IdempotencyError):
    """The request announces a body, but the server passed none on; nothing ran."""

    status: ClassVar[int] = 400
    slug: ClassVar[str] = "body-lost"
    title: ClassVar[str] = "The request body did not arrive"

    def __init__(
        self,
        message: str = "the request announces a body, but the server passed none on, as servers do when a request asks "
        "for another protocol; send it without an Upgrade header",
    ) -> None:
        super().__init__(message)


class RunEnded(IdempotencyError):
    """A claim was used after its run had ended; using it then could affect another operation."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "run-ended"
    title: ClassVar[str] = "A claim was used after its run had ended"

    def __init__(self, *, key_id: str, wanted: str) -> None:
        super().__init__(
            f"the run of idempotency key {key_id} is over, so {wanted} of its claim cannot be used any more; "
            'read values you need later during the run, such as the text that derive("mail") returns'
        )
        self.key_id = key_id
        self.wanted = wanted


class IncompleteRequest(IdempotencyError):
    """The body of a keyed request ended before its Content-Length; nothing ran."""

    status: ClassVar[int] = 400
    slug: ClassVar[str] = "incomplete-request"
    title: ClassVar[str] = "The request body ended too early"

    def __init__(
        self,
        message: str = "the body is shorter than its Content-Length; send the request again with the same key",
    ) -> None:
        super().__init__(message)


class LengthRequired(IdempotencyError):
    """The body of a keyed request has no Content-Length, and the server does not mark its end; nothing ran."""

    status: ClassVar[int] = 411
    slug: ClassVar[str] = "length-required"
    title: ClassVar[str] = "The request body has no length"

    def __init__(
        self, message: str = "send a Content-Length: this server does not pass a body on without one"
    ) -> None:
        super().__init__(message)


class StoreError(IdempotencyError):
    """A store could not do what was asked."""

    status: ClassVar[int] = 503
    slug: ClassVar[str] = "store-error"
    title: ClassVar[str] = "The idempotency store failed"


class StoreUnavailable(StoreError):
    """No answer from the store: the call may or may not have taken effect, and is safe to repeat (R8)."""

    status: ClassVar[int] = 503
    slug: ClassVar[str] = "store-unavailable"
    title: ClassVar[str] = "The idempotency store cannot be reached"
    retry_after: int = 1


class IsolationConflict(StoreError):
    """
    A transaction cannot update the record of a claim: its snapshot of the database is older than the record.

    Raised by `complete_in`. It does not say whether the claim is still held: roll back, and begin the transaction again
    as the message says. Repeating the call in the same transaction fails again.
    """

    status: ClassVar[int] = 503
    slug: ClassVar[str] = "isolation-conflict"
    title: ClassVar[str] = "The transaction cannot see the record of its claim"
    retry_after: int = 1


class UnknownRecordVersion(StoreError):
    """A newer version of this library wrote the record, and this version cannot read it; the record is not changed."""

    status: ClassVar[int] = 503
    slug: ClassVar[str] = "unknown-record-version"
    title: ClassVar[str] = "The stored record has an unknown version"
    retry_after: int = 5


class CorruptRecord(StoreError):
    """The stored record cannot be read. The operation does not run again, and the record is kept for inspection."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "corrupt-record"
    title: ClassVar[str] = "The stored record cannot be read"


def as_store_error(error: Exception) -> StoreError:
    """*error* itself if it is a StoreError; any other exception from a store becomes `StoreUnavailable`."""
    if isinstance(error, StoreError):
        return error
    return StoreUnavailable(
        f"the store raised {type(error).__name__}; the call may have taken effect, and may be repeated"
    )
