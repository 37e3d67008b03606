"""Defines the policy of a route: which requests are protected, for how long, and what is recorded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from idempotency._core.callables import is_plain
from idempotency._core.fingerprint import RequestView, exact_bytes
from idempotency._core.headers import FIRST_CALLER_ONLY, HOP_BY_HOP, HeaderRules, header_rules, is_token
from idempotency._core.outcome import Response
from idempotency._core.problem import Render
from idempotency._core.types import Fingerprint

__all__ = ["HOP_BY_HOP", "Policy", "always", "successes", "unless_transient"]

_URI = re.compile(r"[!-;=?-~]+")  # characters allowed between the angle brackets of a Link (RFC 8288, 3)
_LONGEST = 1e11  # s, some 3,000 years: no store can keep times that are much further away
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


def unless_transient(status: int) -> bool:
    """
    Keep every answer except temporary failures: 408, 425, 429, 500, 502, 503 and 504.

    With this function as `Policy.keep` (the default), 401, 403 and 405 free the key too, and so does a 404 or 307 from
    a router that found no route for the request, and what Flask or Django REST framework raises where a handler has it
    read or validate the request.
    """
    return status not in _TRANSIENT


def always(status: int) -> bool:  # noqa: ARG001
    """Keep every answer of a handler that began, errors included (as Stripe's v1 API does)."""
    return True


def successes(status: int) -> bool:
    """Keep only 2xx."""
    return 200 <= status < 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """
    The promise and the limits of a route. All durations are in seconds, all sizes in bytes.

    Attributes:
        methods: The methods whose keys count; a key on any other request is ignored (draft -07, 2.2).
        required: Refuse a request without a key (400) instead of running it unprotected.
        key_headers: The names of the headers that may carry the key, such as `X-GitHub-Delivery` for a webhook. They
            share one set of keys: `webhook-id: 1` and `svix-id: 1` name the same operation. A request with different
            keys in two headers is refused (400).
        max_key_chars: The longest key, in characters.
        fingerprint: Computes the digest that tells whether two requests are the same; the operation is always part of
            the fingerprint (E9).
        ignored_query: Query parameters that are left out of the fingerprint, such as the time or the signature of an
            attempt.
        lease: How long a claim is valid without a renewal; it is renewed every lease/3 while the handler runs.
        takeover: Whether the operation runs again for the next request after a run died. False: that request gets
            `OutcomeUnknown` (at most once).
        retention: How long an outcome is replayed, from its completion on.
        wait: How long a request waits for a running duplicate before it gets 409.
        prefer_wait: The longest wait a client may ask for with `Prefer: wait=N` (RFC 7240, 4.3); 0 ignores it.
        keep: Tells which statuses are recorded; the others free the key.
        on_exception: Whether a handler that raises frees the key or records a 500.
        record: When the outcome is recorded and the answer sent: "answer", as soon as the answer is complete; "return",
            after the application has returned without raising, so that a failure after the answer counts too, such as
            one in the exit code of a dependency. A stream, or an answer too long to record, is not held back (E2).
        on_store_error: Whether a request whose claim cannot be confirmed is refused (503) or runs unprotected.
        max_request_bytes: The largest body of a keyed request; a larger one gets 413.
        max_discard_bytes: How much of a refused body is read and dropped, so that the client can read the answer.
        max_response_bytes: The largest body that is recorded; a larger one is recorded as done and not kept (E2).
        max_hold: How long a response that keeps streaming is held back before it counts as unreplayable (E2).
        strict_keys: Whether keys without quotes are refused.
        documentation_url: A page that every problem document links to, with the problem's slug as fragment.
        render: Makes the body of every refusal instead of a problem document: it takes a `Problem` and returns the
            Content-Type and the bytes. It cannot change the status, `Retry-After` or other headers. If it raises, the
            problem document is sent, and an error is logged.
        body_timeout: How long the body of a keyed request may take to arrive before it gets 408.
        drop_headers: Response headers that are not recorded: only the first caller gets them.
        replay_header: The response header that marks a replay.
        redact: Applied to a response before it is recorded; the first caller still gets the whole one. If it raises,
            the response is recorded as done and not kept (E2).
    Raises:
        ValueError: Settings that cannot work; the message names all of them.
    """

    methods: frozenset[str] = frozenset({"POST", "PATCH"})
    required: bool = False
    key_headers: tuple[str, ...] = ("Idempotency-Key",)
    max_key_chars: int = 255
    fingerprint: Callable[[RequestView], Fingerprint] = exact_bytes
    ignored_query: frozenset[str] = frozenset()
    lease: float = 30.0
    takeover: bool = True
    retention: float = 86_400.0
    wait: float = 0.0
    prefer_wait: float = 0.0
    keep: Callable[[int], bool] = unless_transient
    on_exception: Literal["release", "keep"] = "release"
    record: Literal["answer", "return"] = "answer"
    on_store_error: Literal["refuse", "bypass"] = "refuse"
    max_request_bytes: int = 1_048_576
    max_discard_bytes: int = 67_108_864
    max_response_bytes: int = 1_048_576
    max_hold: float = 5.0
    strict_keys: bool = False
    documentation_url: str | None = None
    render: Render | None = None
    body_timeout: float = 30.0
    drop_headers: frozenset[bytes] = HOP_BY_HOP | FIRST_CALLER_ONLY
    replay_header: str = "Idempotency-Replayed"
    redact: Callable[[Response], Response] | None = None
    header_rules: HeaderRules = field(init=False, repr=False, compare=False)  # derived from the others
    # Of `key_headers`: each name as written, and in lower case.
    key_fields: tuple[tuple[str, bytes], ...] = field(init=False, repr=False, compare=False)
    key_names: frozenset[bytes] = field(init=False, repr=False, compare=False)  # in lower case
    only_key_name: bytes | None = field(init=False, repr=False, compare=False)  # None if there are several

    def __post_init__(self) -> None:
        if wrong := self._mistakes():
            raise ValueError("; ".join(wrong))
        derived = header_rules(
            replay_header=self.replay_header, drop_headers=self.drop_headers, retention=self.retention
        )
        object.__setattr__(self, "header_rules", derived)  # a frozen dataclass allows no plain assignment
        object.__setattr__(self, "ignored_query", frozenset(self.ignored_query))
        fields = tuple((name, name.lower().encode("ascii")) for name in self.key_headers)
        object.__setattr__(self, "key_fields", fields)
        object.__setattr__(self, "key_names", frozenset(name for _, name in fields))
        object.__setattr__(self, "only_key_name", fields[0][1] if len(fields) == 1 else None)

    def _mistakes(self) -> list[str]:
        """What is wrong with the settings, one sentence for each."""
        wrong = [
            f"{name} must be > 0"
            for name in ("lease", "retention", "max_key_chars", "max_hold", "body_timeout")
            if not getattr(self, name) > 0
        ]
        wrong += [
            f"{name} must be at most {_LONGEST:.0f} seconds"
            for name in ("lease", "retention")
            if getattr(self, name) > _LONGEST
        ]
        wrong += [
            f"{name} must be >= 0"
            for name in (
                "wait",
                "prefer_wait",
                "max_request_bytes",
                "max_discard_bytes",
                "max_response_bytes",
            )
            if not getattr(self, name) >= 0
        ]
        if self.on_exception not in {"release", "keep"}:
            wrong.append('on_exception must be "release" or "keep"')
        if self.record not in {"answer", "return"}:
            wrong.append('record must be "answer" or "return"')
        if self.on_store_error not in {"refuse", "bypass"}:
            wrong.append('on_store_error must be "refuse" or "bypass"')
        # Without these checks a wrong type would weaken the protection silently: a key ignored, a cookie replayed.
        methods: Any = self.methods
        if not methods or isinstance(methods, str) or any(name != name.upper() for name in methods):
            wrong.append("methods must be a set of names in upper case")
        if any(name != name.lower() for name in self.drop_headers) or not _all_bytes(self.drop_headers):
            wrong.append("drop_headers must be bytes in lower case")
        wrong += [
            f"{name} must be a plain function"
            for name in ("fingerprint", "keep", "redact", "render")
            if not is_plain(given := getattr(self, name))
            and not (given is None and name in {"redact", "render"})
        ]
        names: Any = self.key_headers
        if (
            not isinstance(names, tuple)
            or not names
            or not all(isinstance(name, str) and is_token(name) for name in names)
        ):
            wrong.append('key_headers must be a tuple of header names, such as ("Idempotency-Key",)')
        if not isinstance(self.ignored_query, frozenset | set):
            wrong.append("ignored_query must be a set of names")
        if not is_token(self.replay_header):
            wrong.append("replay_header must be the name of a header")
        if self.documentation_url is not None and not _URI.fullmatch(self.documentation_url):
            wrong.append("documentation_url must be a URI, in ASCII")
        return wrong

    @property
    def promise(self) -> Literal["at least once", "at most once"]:
        """
        The promise that this policy makes until the key expires, transactions aside (docs/concepts.md).

        At most once needs keep=always, on_exception="keep", takeover=False and on_store_error="refuse": any other
        value allows a second run.
        """
        keeps_all = self.keep is always and self.on_exception == "keep"
        confirmed = self.on_store_error == "refuse"
        return "at most once" if keeps_all and confirmed and not self.takeover else "at least once"

    @classmethod
    def at_least_once(cls, **overrides: Any) -> Policy:
        """The defaults: a crash or a transient failure frees the key, and the retry runs."""
        return cls(**overrides)

    @classmethod
    def at_most_once(cls, **overrides: Any) -> Policy:
        """
        A key never runs twice: every answer and every exception is kept, and after a crash a request with the key gets
        `OutcomeUnknown` (409) until the key expires or a person resolves it.
        """
        settings: dict[str, Any] = {"keep": always, "on_exception": "keep", "takeover": False}
        return cls(**(settings | overrides))

    @classmethod
    def draft_07(cls, **overrides: Any) -> Policy:
        """The rules of draft-ietf-httpapi-idempotency-key-header-07: the key is required and must be quoted."""
        settings: dict[str, Any] = {"required": True, "strict_keys": True}
        return cls(**(settings | overrides))

    @classmethod
    def stripe_v1(cls, **overrides: Any) -> Policy:
        """
        After Stripe's v1 API: POST only, every answer kept for 24 hours, `Idempotent-Replayed` on replays.

        Refusals stay problem documents with the statuses of draft -07: Stripe's SDKs retry the 409 of a running
        duplicate, and show the 422 of a reused key as an `APIError`, where Stripe itself answers 400.
        """
        settings: dict[str, Any] = {
            "methods": frozenset({"POST"}),
            "keep": always,
            "on_exception": "keep",
            "replay_header": "Idempotent-Replayed",
        }
        return cls(**(settings | overrides))


def _all_bytes(names: Iterable[object]) -> bool:
    return all(isinstance(name, bytes) for name in names)
