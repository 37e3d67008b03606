"""
The HTTP Idempotency-Key header for any ASGI application and any function: one effect per key.

Each store is a submodule with its own dependencies, such as `idempotency.stores.redis`.
"""

from __future__ import annotations

from idempotency._core import outcome as _outcome
from idempotency._core.fingerprint import (
    RequestView,
    canonical_json,
    exact_bytes,
    ignoring,
    multipart_parts,
)
from idempotency._core.key import parse_key, storage_key
from idempotency._core.outcome import Response
from idempotency._core.policy import HOP_BY_HOP, Policy, always, successes, unless_transient
from idempotency._core.problem import Problem
from idempotency._core.types import (
    Acquired,
    Claim,
    Completed,
    Fingerprint,
    Owner,
    Record,
    Running,
    State,
    StorageKey,
)
from idempotency._runtime import implementation as _implementation
from idempotency.asgi import (
    EXPOSED_HEADERS,
    CredentialTenantWarning,
    IdempotencyMiddleware,
    by_header,
    by_user,
    one_tenant,
)
from idempotency.decorators import idempotent
from idempotency.engine.current_claim import CurrentClaim, current_claim
from idempotency.errors import (
    BodyLost,
    CorruptRecord,
    FingerprintMismatch,
    FirstRunFailed,
    IdempotencyError,
    InProgress,
    InvalidKey,
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
from idempotency.events import Event, Hook
from idempotency.store import Inspectable, Page, Purgeable, Store, SyncStore, Waitable

__all__ = [
    "EXPOSED_HEADERS",
    "HOP_BY_HOP",
    "Acquired",
    "BodyLost",
    "Claim",
    "Completed",
    "CorruptRecord",
    "CredentialTenantWarning",
    "CurrentClaim",
    "Event",
    "Fingerprint",
    "FingerprintMismatch",
    "FirstRunFailed",
    "Hook",
    "IdempotencyError",
    "IdempotencyMiddleware",
    "InProgress",
    "Inspectable",
    "InvalidKey",
    "MissingKey",
    "MissingTenant",
    "NotReplayable",
    "OutcomeUnknown",
    "Owner",
    "Page",
    "Policy",
    "Problem",
    "Purgeable",
    "Record",
    "RequestTimeout",
    "RequestTooLarge",
    "RequestView",
    "Response",
    "RunEnded",
    "Running",
    "State",
    "StorageKey",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "SyncStore",
    "UnknownRecordVersion",
    "Waitable",
    "always",
    "by_header",
    "by_user",
    "canonical_json",
    "current_claim",
    "exact_bytes",
    "idempotent",
    "ignoring",
    "multipart_parts",
    "one_tenant",
    "parse_key",
    "storage_key",
    "successes",
    "unless_transient",
]

if not _implementation.PLAIN:  # read here, because the core reads no environment
    _outcome.use_msgspec()
