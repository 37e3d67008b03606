"""Handles one WSGI request: the claim, and the conversion of responses to WSGI."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from http import HTTPStatus
from typing import Final

from idempotency._core.fingerprint import RequestView
from idempotency._core.outcome import Headers, Response
from idempotency._core.policy import Policy
from idempotency._core.types import StorageKey
from idempotency._http.keyed_request import KeyedRequest, require_known_headers
from idempotency.engine.current_claim import Frame
from idempotency.engine.sync_engine import SyncEngine, SyncRun
from idempotency.wsgi.request import BodyReader, field_lines, full_path, headers_of
from idempotency.wsgi.types import Environ, HeaderList

__all__ = ["RUNS", "RequestHandler", "status_line", "text_headers"]

RUNS: Final = "idempotency.runs"
"""
The entry of the environment with the runs of this request, outermost first, for another middleware inside (E10).

It is not a context variable, because requests that the handler makes would inherit that.
"""


class RequestHandler(KeyedRequest[SyncRun]):
    """
    A WSGI request that may be claimed once.

    Args:
        body: Reads the body, and keeps it for the application.
        known: The key headers, in lower case, that were checked before the application ran; None if it has not run.
    """

    def __init__(
        self, engine: SyncEngine, environ: Environ, body: BodyReader, known: Collection[bytes] | None = None
    ) -> None:
        self._known = known
        self.engine = engine
        self.environ = environ
        self._body = body
        self._path = full_path(environ)
        super().__init__(engine, self, method=environ["REQUEST_METHOD"], path=self._path)

    def claim(self, tenant: str | Callable[[], str], policy: Policy) -> SyncRun | Response | None:
        """The run to perform, or the answer to send instead, or None: run without protection."""
        if self._known is not None:
            require_known_headers(policy, self._known)
        prepared = self.prepare(tenant, policy, shared=self._known is None)
        if isinstance(prepared, Response):
            return prepared
        return self.conclude(self.engine.begin(self)) if prepared else None

    def is_part_of(self, key: StorageKey) -> bool:
        """Whether the request is already inside a run under *key*, which it then joins (E10)."""
        runs: tuple[Frame, ...] = self.environ.get(RUNS, ())
        return any(frame.claim.key == key and not frame.over for frame in runs)

    def field_lines(self, name: bytes) -> Sequence[bytes]:
        """The field lines of the header *name*, given in lower case; the server has joined them to one."""
        return field_lines(self.environ, name)

    @property
    def is_too_large(self) -> bool:
        """Whether the body was refused for its length, and part of it is unread."""
        return self._body.is_too_large

    def discard_body(self) -> None:
        """Read and drop the rest of such a body, so that the client can read the answer."""
        self._body.discard(most=self.policy.max_discard_bytes)

    def view(self, tenant: str, *, limit: int) -> RequestView:
        """The whole request; its body is read here."""
        environ = self.environ
        query = environ.get("QUERY_STRING", "").encode("latin-1")
        body = self._body.read(limit=limit)
        return RequestView(environ["REQUEST_METHOD"], self._path, query, headers_of(environ), body, tenant)


# Of these four, Python before 3.13 has older phrases than RFC 9110.
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus} | {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}


def status_line(status: int) -> str:
    """A status with its registered phrase: PEP 3333 requires one, although it has no meaning (RFC 9112, 4)."""
    return f"{status} {_PHRASES.get(status, 'Unassigned')}"


def text_headers(headers: Headers) -> HeaderList:
    """Headers for WSGI: str, decoded as latin-1."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
