"""The state of a request in Django: its claim just before the view, and its settlement when the response is ready."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse, RawPostDataException, UnreadablePostError
from django.http.response import HttpResponseBase

from idempotency._core.actions import RECORDED, Ending, Refuse, Superseded
from idempotency._core.errors import IncompleteRequest, LengthRequired, RequestTooLarge
from idempotency._core.fingerprint import RequestView
from idempotency._core.outcome import Headers, Response, encode_response, encode_unreplayable
from idempotency._core.policy import Policy
from idempotency._core.protocol import settle
from idempotency._core.types import StorageKey
from idempotency._http.content_length import content_length
from idempotency._http.incoming_body import discard
from idempotency._http.keyed_request import KeyedRequest
from idempotency._http.recorded_answer import AnswerEncoder
from idempotency._http.refusal import first_run_failed
from idempotency._http.refused_input import NotAccepted
from idempotency.engine.current_claim import Frame, active, leave
from idempotency.engine.run import Run
from idempotency.engine.sync_engine import SyncRun

__all__ = ["PENDING", "PendingRequest", "drop", "pending_of", "to_django"]

PENDING: Final = "_idempotency_pending"
"""The attribute of an `HttpRequest` that holds its `PendingRequest`."""

RUNS: Final = "idempotency.runs"  # set by the ASGI and WSGI middlewares in the scope or the environ

RunT = TypeVar("RunT", Run, SyncRun)


class PendingRequest(Generic[RunT]):
    """
    One request, from before its view to its response.

    It uses no clock and no store: the middleware passes `keyed` to its engine, and ends the run with the outcome
    that `outcome_of` returns.
    """

    def __init__(self, engine: Any, request: HttpRequest, key_names: Collection[bytes]) -> None:
        self.request = request
        self.engine = engine
        self.keyed: KeyedRequest[RunT] = KeyedRequest(
            engine, self, method=request.method or "", path=request.get_full_path().partition("?")[0]
        )
        self.key_names = key_names
        self.raised = False
        self.not_accepted: NotAccepted | None = None  # the framework refused the input
        self.run: RunT | None = None
        self.replacement: Response | None = None
        self._left = False
        self._body: bytes | None = None
        self._too_large = False
        self._read_above = False
        self._encoder: AnswerEncoder | None = None
        self._frame: Frame | None = None
        self._outer = active.get()

    # The `Source` of `KeyedRequest`.

    def is_part_of(self, key: StorageKey) -> bool:
        """Whether an ASGI or WSGI middleware outside already runs this request under *key* (E10)."""
        holder: Any = getattr(self.request, "scope", None) or getattr(self.request, "environ", None) or {}
        runs: tuple[Frame, ...] = holder.get(RUNS, ())
        return any(frame.claim.key == key and not frame.over for frame in runs)

    def field_lines(self, name: bytes) -> Sequence[bytes]:
        """The field lines of the header *name*, given in lower case; Django joins them to one."""
        value = self.request.META.get("HTTP_" + name.decode("ascii").upper().replace("-", "_"))
        return [] if value is None else [value.encode("latin-1", "replace")]

    @property
    def may_have_key(self) -> bool:
        """Whether there is a header that may carry a key."""
        return any(self.field_lines(name) for name in self.key_names)

    def read_body(self) -> None:
        """Make Django keep the body before a form is parsed from it."""
        try:
            self._body = self.request.body
        except RequestDataTooBig:
            self._too_large = True
        except UnreadablePostError:
            self._body = None
        except RawPostDataException:
            self._read_above = True

    def view(self, tenant: str, *, limit: int) -> RequestView:
        """
        The whole request.

        Raises:
            IdempotencyError: Its body is longer than *limit* bytes, or did not arrive.
            RuntimeError: Its body was read before this middleware could.
        """
        request, body = self.request, self._body
        if self._read_above:
            raise RuntimeError(
                "a middleware above IdempotencyMiddleware has read the body of this request, as request.POST of a "
                "multipart form does: put IdempotencyMiddleware above it"
            )
        if self._too_large:
            from django.conf import settings

            raise RequestTooLarge(limit=min(limit, settings.DATA_UPLOAD_MAX_MEMORY_SIZE or limit))
        if body is None:
            raise IncompleteRequest
        if len(body) > limit:
            raise RequestTooLarge(limit=limit)
        if hasattr(request, "environ"):
            _require_whole(request, body, limit=limit)
        headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1", "replace"))
            for name, value in request.headers.items()
        ]
        path, _, query = request.get_full_path().partition("?")
        return RequestView(request.method or "", path, query.encode(), headers, body, tenant)

    # The claim.

    def require_open(self) -> None:
        """
        Refuse a claim for a request that is over: nothing would settle it.

        Raises:
            RuntimeError: The request is over. Under ASGI Django ends a request whose client has left, while a plain
                view goes on in its thread.
        """
        if self._left:
            raise RuntimeError("this request is over, or its client has left: nothing is claimed for it")

    def begin(self, verdict: RunT | Response | None) -> HttpResponse | None:
        """
        Enter the run; or return the answer to send instead.

        Raises:
            RuntimeError: The request is over; the run is left to its lease.
        """
        if isinstance(verdict, Response):
            return self.replace(verdict)
        if verdict is not None:
            if self._left:
                verdict.abandon()
                self.require_open()
            self.run = verdict
            self._encoder = AnswerEncoder(self.keyed.policy, self.engine.traceparent)
            self._frame = Frame(verdict.claim, self._encoder, None)
            active.set(self._frame)
        return None

    def replace(self, answer: Response) -> HttpResponse:
        """Make *answer* the answer, instead of the view's."""
        self.replacement = answer
        return to_django(answer)

    def in_place_of(self, response: HttpResponseBase) -> HttpResponseBase:
        """*response*, or the answer that replaces it."""
        if self.replacement is None:
            return response
        drop(response)
        if self._too_large and hasattr(self.request, "environ"):
            return to_django(
                self.replacement, _RefusedUnread(self.request, self.keyed.policy, self.engine.monotonic)
            )
        return to_django(self.replacement)

    def require_unclaimed(self) -> None:
        """
        Check that the request is not claimed yet.

        Raises:
            RuntimeError: It was claimed before: two decorators, or a decorator and the mixin, protect one view.
        """
        if self.run is not None or self.replacement is not None:
            raise RuntimeError("this request was claimed before: protect a view once")

    def leave(self) -> None:
        """End the view: code that runs from now on is not under its claim, and nothing can be claimed any more."""
        self._left = True
        if self._frame is not None:
            self._frame.end()
            leave(self._frame, self._outer)

    # The settlement.

    def outcome_of(self, response: HttpResponseBase) -> tuple[bytes, Any] | None:
        """
        The outcome to record for *response*, and whether it can be replayed; None: free the key.

        Raises:
            Exception: The policy raised, or *response* is not a response; the claim stays until its lease ends.
        """
        assert self.run is not None
        try:
            return self._outcome_of(response, self.run)
        except BaseException:
            self.run.abandon()
            raise

    def failure(self) -> bytes | None:
        """The outcome to record for a view that raised; None: free the key."""
        policy = self.keyed.policy
        return None if policy.on_exception == "release" else encode_response(first_run_failed(policy))

    def _outcome_of(self, response: HttpResponseBase, run: RunT) -> tuple[bytes, Any] | None:
        assert self._encoder is not None
        policy, status = self.keyed.policy, response.status_code
        if self.raised and status >= 500:
            return None if (failure := self.failure()) is None else (failure, "kept")
        refused = self.not_accepted if status >= 400 else None
        if settle(status, policy=policy, handled=refused != "before", accepted=refused is None) == "release":
            return None
        if response.streaming:
            return encode_unreplayable("a streaming response", status), "unreplayable"
        assert isinstance(response, HttpResponse)
        return self._encoder.encode(Response(status, _headers(response), response.content), run.claim)

    def answer(self, response: HttpResponseBase, ending: Ending, result: str) -> HttpResponseBase:
        """The response to send after recording, by how that ended (E8)."""
        if isinstance(ending, Superseded):
            drop(response)
            return to_django(self.keyed.replay(ending.completed))
        if isinstance(ending, Refuse):
            drop(response)
            return to_django(self.keyed.refuse(ending.error))
        response = self.own(response)
        if ending is RECORDED and result == "kept":
            name, value = self.keyed.policy.header_rules.expires_in
            response.headers[name.decode("latin-1")] = value.decode("latin-1")
        return response

    def own(self, response: HttpResponseBase) -> HttpResponseBase:
        """The view's own response, without the headers that only this library may set."""
        for name in self.keyed.policy.header_rules.ours:
            del response.headers[name.decode("ascii")]
        return response


def drop(response: HttpResponseBase) -> None:
    """Free the resources of an unused response. (Its `close` would tell Django that the request is finished.)"""
    closers: list[Any] = response._resource_closers  # type: ignore[attr-defined]  # noqa: SLF001
    for close in closers:
        with suppress(Exception):  # as Django closes them
            close()


def _require_whole(request: HttpRequest, body: bytes, *, limit: int) -> None:
    """
    Refuse bodies that Django under WSGI takes for complete: one that was cut off, or an empty one for a chunked body.

    Raises:
        IncompleteRequest: The body is shorter than its Content-Length.
        LengthRequired: The body has no length, or its length is not a number.
        RequestTooLarge: The Content-Length is larger than *limit*.
    """
    length = content_length(request.META.get("CONTENT_LENGTH"))
    if length is not None and length > limit:
        raise RequestTooLarge(limit=limit)
    if length is None and "HTTP_TRANSFER_ENCODING" in request.META:
        raise LengthRequired
    if length is not None and len(body) < length:
        raise IncompleteRequest


def pending_of(request: HttpRequest) -> PendingRequest[Any]:
    """
    The pending request that the middleware attached to *request*.

    Raises:
        RuntimeError: The middleware did not run, so the view would run without protection.
    """
    pending = getattr(request, PENDING, None)
    if not isinstance(pending, PendingRequest):
        raise RuntimeError(
            "this request did not pass idempotency.django.IdempotencyMiddleware: put it into MIDDLEWARE, below "
            "AuthenticationMiddleware"
        )
    return pending


class _RefusedUnread(HttpResponse):
    """The refusal of a body that is too large; after it is sent, the rest of the body is read and dropped."""

    def __init__(self, request: HttpRequest, policy: Policy, monotonic: Callable[[], float]) -> None:
        super().__init__()
        self._unread = request
        self._policy = policy
        self._monotonic = monotonic

    def close(self) -> None:
        """Called by the server after it has sent the response."""
        policy = self._policy
        discard(
            self._unread.read,
            policy.max_discard_bytes,
            timeout=policy.body_timeout,
            monotonic=self._monotonic,
        )
        super().close()


def to_django(answer: Response, response: HttpResponse | None = None) -> HttpResponse:
    """*answer* as a Django response; written into *response* if that is given."""
    response = HttpResponse() if response is None else response
    response.content, response.status_code = answer.body, answer.status
    del response.headers["Content-Type"]
    for name, value in answer.headers:
        text, given = value.decode("latin-1"), name.decode("latin-1")
        if name == b"set-cookie":
            response.cookies.load(text)
            continue
        # Django keeps one value per name, so repeated headers are joined (RFC 9110, 5.3).
        response.headers[given] = f"{response.headers[given]}, {text}" if given in response.headers else text
    return response


def _headers(response: HttpResponse) -> Headers:
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()
    ]
    return headers + [
        (b"set-cookie", cookie.OutputString().encode("latin-1")) for cookie in response.cookies.values()
    ]
