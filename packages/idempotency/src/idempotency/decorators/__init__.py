"""
The decorator: one effect per key for any function: coroutine functions with a `Store`, plain ones with a `SyncStore`.

Use it where there is no HTTP middleware: queue consumers, scheduled jobs, RPC handlers. The key and the fingerprint
come from the arguments, which are read once, before anything runs. The value is recorded by a codec and returned to
every retry.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Coroutine, Sequence
from copy import copy
from functools import wraps
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, overload

from idempotency._core.actions import Bypass, Ending, Refuse, Replay, Superseded
from idempotency._core.callables import is_async, is_plain
from idempotency._core.errors import (
    IdempotencyError,
    UnknownRecordVersion,
)
from idempotency._core.outcome import encode_unreplayable, encode_value
from idempotency._core.policy import Policy
from idempotency._core.recorded import read_value
from idempotency._core.types import Claim, Completed, StorageKey, key_id
from idempotency.codecs import JSON, Codec
from idempotency.decorators.call import CallReader, OfArguments
from idempotency.decorators.deferred import require_begun, require_done, return_type
from idempotency.engine import Ask, Engine
from idempotency.engine.checks import is_async_store
from idempotency.engine.current_claim import Frame, active, covering, inside, joined
from idempotency.engine.overrides import overrides
from idempotency.engine.sync_engine import SyncEngine
from idempotency.events import Hook, Refused, Replayed
from idempotency.store import Store, SyncStore

__all__ = ["idempotent"]

P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger("idempotency")


class _AsyncDecorator(Protocol):
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> Callable[P, Coroutine[Any, Any, R]]: ...


class _SyncDecorator(Protocol):
    def __call__(self, function: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def idempotent(
    *,
    store: Store,
    operation: str,
    key: OfArguments[str],
    fingerprint: OfArguments[object] | None = ...,
    codec: Codec[Any] = ...,
    policy: Policy | OfArguments[Policy] = ...,
    hooks: Sequence[Hook] = ...,
) -> _AsyncDecorator: ...


@overload
def idempotent(
    *,
    store: SyncStore,
    operation: str,
    key: OfArguments[str],
    fingerprint: OfArguments[object] | None = ...,
    codec: Codec[Any] = ...,
    policy: Policy | OfArguments[Policy] = ...,
    hooks: Sequence[Hook] = ...,
) -> _SyncDecorator: ...


def idempotent(
    *,
    store: Store | SyncStore,
    operation: str,
    key: OfArguments[str],
    fingerprint: OfArguments[object] | None = None,
    codec: Codec[Any] = JSON,
    policy: Policy | OfArguments[Policy] = Policy(),  # noqa: B008
    hooks: Sequence[Hook] = (),
) -> Any:
    """
    Run a function once per key; every other call with that key gets the value of the first one.

    Args:
        store: A `Store` for `async def`, a `SyncStore` for `def`.
        operation: The function's stable name in store keys and events; two operations never share a key. In the
            store key it takes the place of a middleware's tenant.
        key: Takes the arguments of a call and returns its key.
        fingerprint: Takes the arguments and returns what must be equal in two calls with one key: bytes, or a value of
            the types below. By default every argument that differs from its default counts. The types are JSON values,
            bytes, dates and times, `Decimal`, `UUID`, enums, sets, dataclasses, attrs classes, msgspec structs,
            pydantic models, and tuples, lists and dicts of these.
        codec: How the value is recorded: `JSON`, `DataclassCodec()`, `PydanticCodec()` or your own.
        policy: `lease`, `takeover`, `retention`, `wait`, `on_exception`, `on_store_error`, `max_key_chars` and
            `max_response_bytes` (of the record) apply here; the others concern HTTP only. Or a function that takes the
            arguments and returns a policy for the call, for example with a lease as long as the call may still run.
        hooks: Called with every event.
    Raises:
        TypeError: At decoration: a function and a store of different kinds, a generator, a function that returns an
            awaitable or an iterator, or a return annotation that the codec cannot give back exactly.
        ValueError: *operation* is empty.

    The decorated function raises, before anything runs: `TypeError` and `InvalidKey` for a call without a usable key or
    fingerprint; `InProgress` while the first call runs (after `policy.wait` seconds); `FingerprintMismatch`;
    `OutcomeUnknown`; `NotReplayable`; `FirstRunFailed`; a `StoreError`. An exception of the function itself reaches the
    caller; `policy.on_exception` says whether its key is free again or raises `FirstRunFailed`. After a cancelled or
    interrupted run the key stays claimed until the lease ends. If the codec cannot encode the value, the caller still
    gets it, an error is logged, and the call is recorded as done: retries raise `NotReplayable`.

    Cost: one store call for a replay, two for a first run, and one more for every lease/3 that a run lasts.
    """
    if not operation:
        raise ValueError(
            'operation must be a name such as "charge-card": it separates the keys of different functions'
        )
    for name, function in (("key", key), ("fingerprint", fingerprint)):
        if (function is not None or name == "key") and (not callable(function) or is_async(function)):
            raise TypeError(f"{name}= must be a plain function of the decorated function's arguments")
    if not isinstance(policy, Policy) and not is_plain(policy):
        raise TypeError("policy= must be a Policy, or a plain function of the arguments that returns one")

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        _require_kind(function, store, operation)
        bound = codec.bind(return_type(function, operation))
        reader = CallReader(
            function,
            operation=operation,
            key=key,
            fingerprint=fingerprint,
        )
        if is_async_store(store):
            engine = Engine(store, hooks=hooks)  # type: ignore[arg-type]
            return _guard_async(function, engine, _CallHandler(engine, reader, operation, bound, policy))
        sync_engine = SyncEngine(store, hooks=hooks)  # type: ignore[arg-type]
        return _guard_sync(function, sync_engine, _CallHandler(sync_engine, reader, operation, bound, policy))

    return decorate


def _guard_async(function: Callable[..., Any], engine: Engine, shared: _CallHandler) -> Callable[..., Any]:
    @wraps(function)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        if overrides.off:
            return await function(*args, **kwargs)
        ask = shared.read(args, kwargs)
        handler = shared.under(ask.policy)
        enclosing = active.get()
        if (joins := covering(ask.key, enclosing)) is not None:
            with joined(joins):
                return await function(*args, **kwargs)
        run = await engine.begin(ask)
        if isinstance(run, Bypass):
            return await function(*args, **kwargs)
        if isinstance(run, Replay | Refuse):
            return handler.answer(ask, run)
        frame = Frame(run.claim, handler, enclosing)
        try:
            with inside(frame):
                value = await function(*args, **kwargs)
                require_begun(value, ask.operation)
        except Exception as error:
            if handler.keeps_exceptions:
                await run.keep(handler.encode_failure(error))
            else:
                await run.release()
            raise
        except BaseException:
            run.abandon()  # cancelled: the outcome is unknown, so the claim stays (E4)
            raise
        outcome, result = handler.encode(value, ask.key)
        return handler.conclude(ask, await run.keep(outcome, result=result), value)

    return guarded


def _guard_sync(function: Callable[..., Any], engine: SyncEngine, shared: _CallHandler) -> Callable[..., Any]:
    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if overrides.off:
            return function(*args, **kwargs)
        ask = shared.read(args, kwargs)
        handler = shared.under(ask.policy)
        enclosing = active.get()
        if (joins := covering(ask.key, enclosing)) is not None:
            with joined(joins):
                return function(*args, **kwargs)
        run = engine.begin(ask)
        if isinstance(run, Bypass):
            return function(*args, **kwargs)
        if isinstance(run, Replay | Refuse):
            return handler.answer(ask, run)
        frame = Frame(run.claim, handler, enclosing)
        try:
            with inside(frame):
                value = function(*args, **kwargs)
                require_done(value, ask.operation)
        except Exception as error:
            if handler.keeps_exceptions:
                run.keep(handler.encode_failure(error))
            else:
                run.release()
            raise
        except BaseException:
            run.abandon()  # interrupted: the outcome is unknown, so the claim stays (E4)
            raise
        outcome, result = handler.encode(value, ask.key)
        return handler.conclude(ask, run.keep(outcome, result=result), value)

    return guarded


class _CallHandler:
    """
    Handles the calls of one decorated function: reads them, encodes records, and answers calls that do not run.

    Both guards use it. `under` makes a copy for a call whose policy is its own.
    """

    def __init__(
        self,
        engine: Engine | SyncEngine,
        reader: CallReader,
        operation: str,
        codec: Codec[Any],
        policy: Policy | OfArguments[Policy],
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._operation = operation
        self._codec = codec
        self._policy_of = policy
        self._policy = policy if isinstance(policy, Policy) else Policy()

    @property
    def retention(self) -> float:
        """Seconds that a record is kept."""
        return self._policy.retention

    @property
    def keeps_exceptions(self) -> bool:
        """Whether the exception of a function is recorded."""
        return self._policy.on_exception == "keep"

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ask:
        policy = self._policy_of
        if not isinstance(policy, Policy):
            policy = self._reader.ask("policy", policy, args, kwargs)
            if not isinstance(policy, Policy):
                raise TypeError(
                    f"policy= of {self._operation} must return a Policy, not a {type(policy).__name__}"
                )
        key, fingerprint = self._reader.read(args, kwargs, max_key_chars=policy.max_key_chars)
        return Ask(key, fingerprint, policy, self._operation, policy.wait)

    def under(self, policy: Policy) -> _CallHandler:
        """A copy of this object for a call with *policy*, or itself if it has that policy."""
        if policy is self._policy:
            return self
        own = copy(self)
        own._policy = policy  # noqa: SLF001
        return own

    def encode(self, value: Any, key: StorageKey) -> tuple[bytes, Literal["kept", "unreplayable"]]:
        """The outcome for a value; a tombstone if it cannot be kept, since the call has had its effect (E2)."""
        try:
            outcome = encode_value({"returned": self._codec.encode(value)}, self._engine.traceparent())
        except Exception as error:
            # Without the value and the codec's message: both may contain data that must not reach a log.
            reason = f"the codec refused a {type(value).__qualname__}: {type(error).__name__}"
        else:
            if len(outcome) <= self._policy.max_response_bytes:
                return outcome, "kept"
            reason = f"larger than {self._policy.max_response_bytes} bytes"
        _log.error(
            "%s returned a value that cannot be kept (%s): its retries will raise NotReplayable (key %s)",
            self._operation,
            reason,
            key_id(key),
        )
        return encode_unreplayable(reason, 200), "unreplayable"

    def outcome(self, answer: Any, claim: Claim) -> bytes:
        """See `CurrentClaim.outcome`."""
        return self.encode(answer, claim.key)[0]

    def encode_failure(self, error: Exception) -> bytes:
        """The outcome for an exception: only its class, because its message may contain anything."""
        return encode_value({"raised": type(error).__qualname__}, self._engine.traceparent())

    def conclude(self, ask: Ask, ending: Ending, value: Any) -> Any:
        """Returns the run's own value, unless another run took over and recorded its outcome (E8)."""
        if isinstance(ending, Superseded):
            return self.answer(ask, Replay(ending.completed))
        if isinstance(ending, Refuse):
            return self.answer(ask, ending)
        return value

    def answer(self, ask: Ask, verdict: Replay | Refuse) -> Any:
        """The value of a replay, or the error of a refusal, and its event."""
        error = verdict.error if isinstance(verdict, Refuse) else None
        if isinstance(verdict, Replay):
            try:
                return self._replay(ask, verdict.completed, verdict.waited)
            except IdempotencyError as refused:
                error = refused
        assert error is not None
        if self._engine.hooks:
            self._engine.emit(
                Refused(
                    operation=ask.operation, key_id=key_id(ask.key), problem=error.slug, status=error.status
                )
            )
        raise error

    def _replay(self, ask: Ask, completed: Completed, waited: float) -> Any:
        recorded = read_value(completed, ask.key, max_bytes=self._policy.max_response_bytes)
        value = self._decode(recorded.value["returned"])
        if self._engine.hooks:
            self._engine.emit(
                Replayed(
                    operation=ask.operation,
                    key_id=key_id(ask.key),
                    age=completed.age,
                    waited=waited,
                    traceparent=recorded.traceparent,
                )
            )
        return value

    def _decode(self, stored: Any) -> Any:
        try:
            return self._codec.decode(stored)
        except Exception:
            raise UnknownRecordVersion(
                f"the recorded value does not fit the type that {self._operation} returns now; "
                "answer with the version that wrote it, or use another key"
            ) from None


# Checks at decoration.


def _require_kind(function: Any, store: Any, operation: str) -> None:
    if not callable(function) or isinstance(function, staticmethod | classmethod | type):
        raise TypeError(f"{operation}: put @idempotent on the function itself, below any other decorator")
    call = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    if any(
        inspect.isgeneratorfunction(item) or inspect.isasyncgenfunction(item) for item in (function, call)
    ):
        raise TypeError(
            f"{operation}: a generator has no single value to record; return a list of its values"
        )
    if is_async(function) != is_async_store(store):
        mine, wanted = ("async def", "Store") if is_async(function) else ("def", "SyncStore")
        raise TypeError(
            f"{operation}: a function defined by `{mine}` needs a {wanted}, not a {type(store).__name__}; "
            "each store module has both, such as MemoryStore and SyncMemoryStore"
        )
