"""The typed errors, all under `IdempotencyError`; each says what to do next."""

from __future__ import annotations

from idempotency._core.errors import (
    BodyLost,
    CorruptRecord,
    FingerprintMismatch,
    FirstRunFailed,
    IdempotencyError,
    IncompleteRequest,
    InProgress,
    InvalidKey,
    IsolationConflict,
    LengthRequired,
    MissingKey,
    MissingTenant,
    NotReplayable,
    OutcomeUnknown,
    RequestTimeout,
    RequestTooLarge,
    RunEnded,
    StoreError,
    StoreUnavailable,
    UnknownRecordVersion,
)

__all__ = [
    "BodyLost",
    "CorruptRecord",
    "FingerprintMismatch",
    "FirstRunFailed",
    "IdempotencyError",
    "IncompleteRequest",
    "InProgress",
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
]
