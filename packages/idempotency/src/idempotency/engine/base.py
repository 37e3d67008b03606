"""The code that both engines share: sends events to hooks, and ends the wait of a run's concurrent duplicates."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Generic, Literal, Protocol, TypeVar

from idempotency._core.actions import (
    Bypass,
    Ending,
    Recorded,
    Refuse,
    Replay,
    Superseded,
    Unrecorded,
)
from idempotency._core.errors import StoreError
from idempotency._core.types import Claim, Completed, StorageKey, key_id
from idempotency.engine.overrides import overrides
from idempotency.engine.request import OperationRequest
from idempotency.events import (
    Claimed,
    ClaimLost,
    Event,
    FailedAfterRecord,
    Hook,
    Settled,
    Step,
    StoreFailed,
    emit,
    traceparent,
)

__all__ = ["EngineBase", "RunBase"]

_log = logging.getLogger("idempotency")

_FAILED_AFTER_RECORD: Final = (
    "%s raised %s after its answer was recorded (key %s): retries get that answer, although work that was to follow it "
    "may be missing, such as a commit in the exit code of a dependency. Do that work before the answer is sent "
    '(FastAPI: Depends(..., scope="function")), or set Policy(record="return")'
)

F = TypeVar("F")
F_contra = TypeVar("F_contra", contravariant=True)


class _SingleFlight(Protocol[F_contra]):
    def resolve(self, key: StorageKey, in_flight: F_contra, completed: Completed) -> None: ...
    def hand_over(self, key: StorageKey, in_flight: F_contra) -> None: ...


class EngineBase(Generic[F]):
    """Sends an engine's events to its hooks."""

    hooks: tuple[Hook, ...]
    monotonic: Callable[[], float]
    single_flight: _SingleFlight[F]

    @property
    def is_off(self) -> bool:
        """Whether a test has switched protection off."""
        return overrides.off

    def emit(self, event: Event) -> None:
        """Send *event* to the hooks; without hooks, a lost claim and a failed store are logged."""
        emit(self.hooks, event)

    def traceparent(self) -> str | None:
        """The trace context to record with an outcome, from the first hook that has one (`hooks.OpenTelemetryHook`)."""
        return traceparent(self.hooks)

    def failed_after_record(self, error: BaseException, claim: Claim, operation: str) -> None:
        """Report that the application raised after its answer was recorded; always logged, with what to do."""
        name, kind = key_id(claim.key), type(error).__name__
        _log.error(_FAILED_AFTER_RECORD, operation, kind, name)
        if self.hooks:
            self.emit(FailedAfterRecord(operation=operation, key_id=name, attempt=claim.attempt, error=kind))

    def claimed(self, request: OperationRequest, claim: Claim, waited: float) -> None:
        """Report a run that begins."""
        self.emit(
            Claimed(
                operation=request.operation, key_id=key_id(request.key), attempt=claim.attempt, waited=waited
            )
        )

    def not_claimed(self, request: OperationRequest, verdict: Replay | Refuse | Bypass) -> None:
        """Report a failed store, if that is why nothing was claimed."""
        if isinstance(verdict, Bypass):
            self.store_failed("acquire", "bypassed", verdict.error, request.key, request.operation)
        elif isinstance(verdict, Refuse) and isinstance(verdict.error, StoreError):
            self.store_failed("acquire", "refused", verdict.error, request.key, request.operation)

    def store_failed(
        self,
        step: Step,
        action: Literal["refused", "bypassed", "retrying", "unrecorded"],
        error: BaseException,
        key: StorageKey,
        operation: str,
    ) -> None:
        """Report a store that gave no answer."""
        self.emit(
            StoreFailed(
                operation=operation,
                key_id=key_id(key),
                step=step,
                action=action,
                error=type(error).__name__,
                reason=str(error) if isinstance(error, StoreError) else "",
            )
        )


class RunBase(Generic[F]):
    """Reports the end of a run to its waiting duplicates and to the hooks."""

    __slots__ = ("_began", "_engine", "_in_flight", "_lost", "_over", "claim", "request")

    request: OperationRequest
    claim: Claim
    _engine: EngineBase[F]
    _in_flight: F | None  # the duplicates in this process, if this run leads them
    _over: bool
    _lost: bool
    _began: float  # s, by the engine's clock

    def _conclude(self, ending: Ending, outcome: bytes, result: Literal["kept", "unreplayable"]) -> Ending:
        if isinstance(ending, Recorded):
            if self._in_flight is not None:
                request = self.request
                self._resolve_followers(
                    Completed(request.fingerprint, outcome, 0.0, request.policy.retention)
                )
            if self._engine.hooks:
                self._settled(result)
        elif isinstance(ending, Unrecorded):
            self._resolve_followers(None)
            self._engine.store_failed(
                "complete", "unrecorded", ending.error, self.claim.key, self.request.operation
            )
        else:
            self._resolve_followers(ending.completed if isinstance(ending, Superseded) else None)
            self._claim_lost()
        return ending

    def _resolve_followers(self, completed: Completed | None) -> None:
        """Replay *completed* to the duplicates that wait in this process; None: let one of them lead the others."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is None:
            return
        if completed is None:
            self._engine.single_flight.hand_over(self.claim.key, in_flight)
        else:
            self._engine.single_flight.resolve(self.claim.key, in_flight, completed)

    def _claim_lost(self) -> None:
        if not self._lost:
            self._lost = True
            self._engine.emit(
                ClaimLost(
                    operation=self.request.operation,
                    key_id=key_id(self.claim.key),
                    attempt=self.claim.attempt,
                )
            )

    def _settled(self, result: Literal["kept", "unreplayable", "released", "abandoned"]) -> None:
        if self._engine.hooks:
            self._engine.emit(
                Settled(
                    operation=self.request.operation,
                    key_id=key_id(self.claim.key),
                    attempt=self.claim.attempt,
                    result=result,
                    duration=self._engine.monotonic() - self._began,
                )
            )
