"""
One keyed HTTP request: what the engine is asked, and the library's own answers, which are replays and refusals.

WSGI, Django and late claims under ASGI use it. The ASGI middleware has the same steps in a faster form
(`idempotency.asgi.middleware`). It performs no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Generic, Protocol, TypeVar

from idempotency._core.actions import Bypass, Refuse, Replay
from idempotency._core.errors import IdempotencyError, MissingKey, MissingTenant
from idempotency._core.fingerprint import RequestView, operation_digest
from idempotency._core.key import parse_key_fields, storage_key
from idempotency._core.outcome import Response
from idempotency._core.policy import Policy
from idempotency._core.printable import printable
from idempotency._core.replay import replay_answer
from idempotency._core.types import Completed, Fingerprint, StorageKey, key_id
from idempotency._http.prefer import preferred_wait
from idempotency._http.refusal import refusal
from idempotency.events import Event, Hook, Refused, Replayed

__all__ = ["KeyedRequest", "Source", "missing_key", "require_known_headers"]

RunT = TypeVar("RunT")


class Source(Protocol):
    """The request, as its framework gives it."""

    def is_part_of(self, key: StorageKey) -> bool:
        """Whether the request is already inside a run under *key*, which it then joins (E10)."""

    def field_lines(self, name: bytes) -> Sequence[bytes]:
        """The field lines of the header *name*, given in lower case; a server may have joined them by commas."""

    def view(self, tenant: str, *, limit: int) -> RequestView:
        """
        The whole request.

        Raises:
            IdempotencyError: The body is longer than *limit* bytes, or did not arrive.
        """


class _Engine(Protocol):
    hooks: tuple[Hook, ...]

    @property
    def is_off(self) -> bool: ...

    def emit(self, event: Event) -> None: ...


class KeyedRequest(Generic[RunT]):
    """
    One keyed request; implements `OperationRequest`.

    Args:
        method: Such as "POST".
        path: Includes the prefix of a mounted application.
    """

    key: StorageKey
    fingerprint: Fingerprint
    policy: Policy
    wait: float

    def __init__(self, engine: _Engine, source: Source, *, method: str, path: str) -> None:
        self._engine = engine
        self._source = source
        self._method = method
        # Hooks write it into logs: escaped, so that a path cannot forge log lines.
        self.operation: str = printable(f"{method} {path}")

    def prepare(
        self, tenant: str | Callable[[], str], policy: Policy, *, shared: bool = False
    ) -> Response | bool:
        """
        Read the key, the wait, the tenant and the fingerprint.

        Args:
            tenant: If it is callable, it is called only when there is a key. An `IdempotencyError` that it raises
                becomes the answer; other exceptions pass through.
            shared: Whether "" stands for one tenant that all share, and not for nobody.
        Returns:
            True: ask the engine. A `Response`: answer with it. False: run without a claim, because the policy does not
            protect the method, the request has no key and needs none, a test switched protection off, or the request
            is inside a run under the same key.
        Raises:
            TypeError: *tenant* is not a str, or does not return one.
        """
        self.policy = policy
        fields = [
            (header, lines) for header, name in policy.key_fields if (lines := self._source.field_lines(name))
        ]
        if self._method not in policy.methods or not (fields or policy.required) or self._engine.is_off:
            return False
        self.wait = preferred_wait(self._source.field_lines(b"prefer"), policy)
        named = False
        try:
            key = parse_key_fields(fields, max_chars=policy.max_key_chars, strict=policy.strict_keys)
            if key is None:
                raise missing_key(policy)
            principal = tenant() if callable(tenant) else tenant
            if not isinstance(principal, str):
                raise TypeError(
                    f"the principal, or tenant, must be a str, not a {type(principal).__name__}; str(user.id) is one"
                )
            self.key, named = storage_key(principal, key), True
            if self._source.is_part_of(self.key):
                return False
            if not (principal or shared):  # as an anonymous user's name is: strangers would share their keys
                raise MissingTenant("the application did not say whose key this is; authenticate first")
            view = self._source.view(principal, limit=policy.max_request_bytes)
        except IdempotencyError as error:
            return self.refuse(error, named=named)
        self.fingerprint = operation_digest(view, policy.fingerprint, ignored_query=policy.ignored_query)
        return True

    def conclude(self, verdict: RunT | Replay | Refuse | Bypass) -> RunT | Response | None:
        """The run to perform, or the answer to send instead, or None: run without protection."""
        if isinstance(verdict, Replay):
            return self.replay(verdict.completed, verdict.waited)
        if isinstance(verdict, Refuse):
            return self.refuse(verdict.error)
        return None if isinstance(verdict, Bypass) else verdict

    def replay(self, completed: Completed, waited: float = 0.0) -> Response:
        """The recorded answer, marked as a replay; a problem document if it cannot be replayed."""
        try:
            answer = replay_answer(completed, key=self.key, policy=self.policy)
        except IdempotencyError as error:
            return self.refuse(error)
        if self._engine.hooks:
            self._engine.emit(
                Replayed(
                    operation=self.operation,
                    key_id=key_id(self.key),
                    age=completed.age,
                    waited=waited,
                    traceparent=answer.traceparent,
                )
            )
        return answer

    def refuse(self, error: IdempotencyError, *, named: bool = True) -> Response:
        """The problem document of *error*; *named* is False if the key could not be read."""
        if self._engine.hooks:
            self._engine.emit(
                Refused(
                    operation=self.operation,
                    key_id=key_id(self.key) if named else None,
                    problem=error.slug,
                    status=error.status,
                )
            )
        return refusal(error, self.policy)


def missing_key(policy: Policy) -> MissingKey:
    """The error for a request that lacks a required key; it names the headers that the policy reads."""
    return MissingKey(f"send the header {' or '.join(policy.key_headers)}: a new UUID for each new operation")


def require_known_headers(policy: Policy, known: Collection[bytes]) -> None:
    """
    Refuse a policy that reads the key from a header unknown to the layer around the application.

    That layer keeps the body only of requests with a known key header; without the body there is no fingerprint.

    Args:
        known: The header names that the layer looks for, in lower case.
    Raises:
        RuntimeError: The policy reads another header.
    """
    unknown = [header for header, name in policy.key_fields if name not in known]
    if unknown:
        raise RuntimeError(
            f"a policy reads the key from {', '.join(unknown)}, and the layer around the application was not told: "
            f"pass key_headers={policy.key_headers!r} to it too (LateClaim, install; in Django the setting "
            'IDEMPOTENCY["KEY_HEADERS"])'
        )
