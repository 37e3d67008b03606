"""
Idempotent calls with requests: an adapter that sends each call under one key until it is answered.

    session = requests.Session()
    IdempotencyAdapter().mount_on(session)

Needs the extra `requests`.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Collection, Generator, Iterator
from datetime import UTC, datetime
from math import inf
from typing import Any, Final, cast
from urllib.parse import urlsplit
from weakref import finalize

from idempotency._runtime.extras import missing

try:
    import requests
except ModuleNotFoundError as _error:
    raise missing("requests", "IdempotencyAdapter", _error) from _error

from requests import exceptions
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3 import HTTPResponse
from urllib3.util import Timeout as Urllib3Timeout

from idempotency.client.attempts import LEAST, Attempts
from idempotency.client.deadlines import DeadlineExceeded, Upload, Worker
from idempotency.client.keys import KEY_HEADER, quote_key, uuid4_key
from idempotency.client.operation import METHODS, Operation, Rules
from idempotency.client.origins import Origin, default_port
from idempotency.client.retry import Answer, Retry

__all__ = ["IdempotencyAdapter", "Retry", "quote_key", "uuid4_key"]

_OPERATION: Final = "idempotency.operation"  # a key in a request's `hooks`, which its redirects share
_ERRORS: Final = (exceptions.ConnectionError, exceptions.Timeout, exceptions.ChunkedEncodingError)


class IdempotencyAdapter(BaseAdapter):
    """
    Sends each call under one key, and sends it again if its answer is lost or asks for a retry.

    Every POST and PATCH gets an Idempotency-Key unless the caller set one. Its body is read once and is the same in
    every attempt, even if it is a file or a generator. Calls are retried and ended as by
    `idempotency.client.IdempotencyTransport`. Requests of other methods pass untouched.

    Without `stream=True` the whole answer is read before it counts, so a call whose answer is cut off is retried. With
    `stream=True` the caller reads the answer, and `Retry.timeout` covers it to its last byte.

    Args:
        adapter: The adapter that sends; by default `HTTPAdapter()`, without urllib3's retries. It is closed with this
            one.
        methods: The methods that are keyed and retried.
        retry: The limits on attempts and time.
        new_key: Makes a new key, of printable ASCII characters.
        trusted_origins: Origins that a request may be redirected to, beside its own; see `IdempotencyTransport`.
        header: The name of the header that carries the key.
        quoted: Whether a new key is sent in quotes; see `IdempotencyTransport`.
        sleep: Sleeps for the given seconds; injected by tests.
        chance: Returns a random number in [0, 1); injected by tests.
        monotonic: A clock in seconds; injected by tests.
    Raises:
        ValueError: *trusted_origins* contains something else than origins, or *header* cannot be a header name.

    Cost: the bodies of request and answer in memory, and a thread for each call, because a blocking read cannot be
    ended when `Retry.timeout` is over. If that happens before the headers have arrived, the thread closes the answer
    when they arrive, or ends with the adapter's own timeout. If it happens during the body, the thread ends at once
    (with urllib3 2.3 or newer, which the extra requires), otherwise with the body.
    """

    def __init__(
        self,
        adapter: BaseAdapter | None = None,
        *,
        methods: Collection[str] = METHODS,
        retry: Retry = Retry(),  # noqa: B008
        new_key: Callable[[], str] = uuid4_key,
        trusted_origins: Collection[str] = (),
        header: str = KEY_HEADER,
        quoted: bool = True,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._adapter = adapter or HTTPAdapter(max_retries=0)
        self._rules = Rules(
            methods=methods,
            retry=retry,
            new_key=new_key,
            trusted_origins=trusted_origins,
            header=header,
            quoted=quoted,
        )
        self._sleep = sleep
        self._chance = chance
        self._monotonic = monotonic

    def mount_on(self, session: requests.Session) -> requests.Session:
        """
        Make *session* send everything through this adapter.

        It is mounted for both schemes, because a redirect is sent by the adapter of its target, and another adapter
        would not keep the key within its origin.
        """
        session.mount("https://", self)
        session.mount("http://", self)
        return session

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        """
        Send *request*; an error of the inner adapter is raised when no attempt is left.

        Raises:
            requests.RequestException: A redirect would send the key and the body to another origin.
            requests.ReadTimeout: `Retry.timeout` is over.
        """
        options = {"stream": True, "verify": verify, "cert": cert, "proxies": proxies}
        attempts = self._begin(request)
        if attempts is None:
            return self._adapter.send(request, **{**options, "stream": stream}, timeout=timeout)
        while True:
            worker = Worker()
            try:
                response = self._send(request, attempts, worker, stream, {**options, "timeout": timeout})
            except _ERRORS as error:
                worker.end()
                delay = attempts.after_error(
                    error,
                    now=self._monotonic(),
                    chance=self._chance(),
                    transient=not isinstance(error, exceptions.SSLError),
                )
                if delay is None:
                    raise
            except BaseException:
                worker.end()
                raise
            else:
                try:
                    delay = attempts.after_answer(
                        _answer(response),
                        now=self._monotonic(),
                        chance=self._chance(),
                        date=datetime.now(UTC),
                    )
                except BaseException:  # of `Retry.retry_if`
                    response.close()
                    raise
                if delay is None:
                    return response
                response.close()
            self._sleep(delay)

    def _begin(self, request: requests.PreparedRequest) -> Attempts | None:
        """The attempts of the call that *request* belongs to, keyed and buffered; None if it is not covered."""
        hooks: Any = request.hooks
        origin = _origin_of(request)
        operation: Operation | None = hooks.get(_OPERATION)
        if operation is not None and operation.continues_with(request, now=self._monotonic()):
            if not self._rules.may_go_to(operation, origin):
                has_body = bool(request.body)
                if (refusal := self._rules.refusal(request.method, origin, has_body=has_body)) is not None:
                    raise exceptions.RequestException(refusal, request=request)
                for name in self._rules.unsafe(list(request.headers)):
                    del request.headers[name]
            return operation.next_step(request)
        if not self._rules.covers(request.method):
            return None
        given = request.headers.get(self._rules.header)
        text = given.decode("latin-1") if isinstance(given, bytes) else given
        operation = self._rules.begin(request, origin, given=text, now=self._monotonic())
        # Kept in the request, so that a redirect or an authentication round belongs to the same operation.
        hooks[_OPERATION] = operation
        request.headers[self._rules.header] = operation.key
        self._buffer(request, operation.attempts)
        return operation.attempts

    def _buffer(self, request: requests.PreparedRequest, attempts: Attempts) -> None:
        """Read a file or a generator once, so that every attempt sends the same bytes."""
        body: Any = request.body
        if body is None or isinstance(body, bytes | str):
            return

        def late() -> Exception:
            return exceptions.Timeout(attempts.late_upload(), request=request)

        if hasattr(body, "read"):
            content = _as_bytes(body.read())
            if attempts.left(now=self._monotonic()) <= LEAST:
                raise late()
        else:
            chunks = Upload(body, lambda: attempts.left(now=self._monotonic()), late)
            content = b"".join(map(_as_bytes, chunks))
        request.body = content
        request.headers.pop("Transfer-Encoding", None)
        request.headers["Content-Length"] = str(len(content))

    def _send(
        self,
        request: requests.PreparedRequest,
        attempts: Attempts,
        worker: Worker,
        stream: bool,
        options: dict[str, Any],
    ) -> requests.Response:
        """Make one attempt under the deadline; the answer is read whole unless it is streamed."""
        begun: list[requests.Response] = []
        seconds = attempts.begin(now=self._monotonic())

        def send(timeout: Any) -> requests.Response:
            response = self._adapter.send(request, **{**options, "timeout": timeout})
            begun.append(response)
            response.connection = self  # type: ignore[assignment]  # used by an authentication round to send again
            if not stream and not worker.was_abandoned:
                try:
                    response.content  # noqa: B018  # read and kept
                except BaseException:
                    response.close()
                    raise
            return response

        def late() -> Exception:
            return exceptions.ReadTimeout(attempts.late(), request=request)

        def left() -> float:
            return attempts.left(now=self._monotonic())

        if seconds is None:
            raise late()
        timeout = _cut(options["timeout"], seconds)
        try:
            response = worker.call(seconds, lambda: send(timeout))
        except DeadlineExceeded:
            raise late() from None
        except exceptions.ConnectionError as error:
            if left() > LEAST or isinstance(error, exceptions.Timeout):
                raise
            raise late() from error  # urllib3's own timeout, set to the same moment, came first
        finally:
            if worker.was_abandoned:  # the time is over, or the caller was interrupted
                for unread in begun:
                    _end_reading(unread.raw)
        if stream and attempts.is_bounded(_answer(response)):
            response.raw = _BoundedRaw(response.raw, worker, left, late)
        else:
            worker.end()
        return response

    def close(self) -> None:
        """Close the inner adapter."""
        self._adapter.close()


_READS: Final = frozenset({"read1", "readinto", "readline", "readlines"})  # methods that wait for the server


class _BoundedRaw:
    """urllib3's response under a deadline, with the methods that requests uses."""

    def __init__(
        self, raw: Any, worker: Worker, left: Callable[[], float], late: Callable[[], Exception]
    ) -> None:
        self._raw = raw
        self._worker = worker
        self._seconds = left
        self._late = late
        self._at_end = False
        finalize(self, worker.end)  # for a response that is neither read to its end nor closed

    def stream(
        self, amt: int | None = 65_536, decode_content: bool | None = None
    ) -> Generator[bytes, None, None]:
        """The chunks."""
        chunks = self._raw.stream(amt, decode_content=decode_content)
        while not self._at_end:
            if chunk := self._call(lambda: next(chunks, b"")):
                yield chunk

    def read(self, *args: Any, **options: Any) -> Any:
        """See `urllib3.HTTPResponse.read`."""
        return b"" if self._at_end else self._call(lambda: self._raw.read(*args, **options))

    def __iter__(self) -> Iterator[bytes]:
        """The lines, made from the chunks of `stream`."""
        return HTTPResponse.__iter__(cast("HTTPResponse", self))

    def close(self) -> None:
        """Close the connection, unless its read was abandoned: then the worker closes it."""
        self._end()
        if not self._worker.was_abandoned:
            self._raw.close()

    def release_conn(self) -> None:
        """See `urllib3.HTTPResponse.release_conn`; does nothing while the worker still reads from the connection."""
        if not self._worker.was_abandoned:
            self._raw.release_conn()

    def _call(self, read: Callable[[], Any]) -> Any:
        try:
            chunk = self._worker.call(self._seconds(), read, close=self._drop)
        except DeadlineExceeded:
            raise self._late() from None
        except Exception as error:
            if self._seconds() > LEAST:
                raise
            raise self._late() from error  # urllib3's own timeout, set to the same moment, came first
        finally:
            if self._worker.was_abandoned:  # the time is over, or the caller was interrupted
                _end_reading(self._raw)
        if not chunk:
            self._end()
        return chunk

    def _drop(self) -> None:
        self._raw.close()
        self._raw.release_conn()  # frees its place in a pool of limited size

    def _end(self) -> None:
        self._at_end = True
        self._worker.end()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._raw, name)
        if name not in _READS:
            return value
        return lambda *args, **options: self._call(lambda: value(*args, **options))


def _end_reading(raw: Any) -> None:
    """Shut down the connection of *raw*: only this ends a blocking read in another thread."""
    shutdown = getattr(raw, "shutdown", None)
    if shutdown is not None:
        with contextlib.suppress(ValueError, RuntimeError, OSError):  # the read has just ended
            shutdown()


def _as_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


def _cut(timeout: Any, left: float) -> Any:
    """The caller's timeout, in any form that requests accepts, cut to the time left."""
    if left == inf:
        return timeout
    if isinstance(timeout, Urllib3Timeout):
        whole = timeout.clone()
        whole.total = min(timeout.total, left) if isinstance(timeout.total, int | float) else left
        return whole
    if isinstance(timeout, tuple):
        connect, read = timeout
    else:
        connect = read = timeout
    given = [seconds if isinstance(seconds, int | float) else left for seconds in (connect, read)]
    return min(given[0], left), min(given[1], left)


def _answer(response: requests.Response) -> Answer:
    content = response._content  # noqa: SLF001  # False if unread; `content` would read it
    return Answer(response.status_code, response.headers, content if isinstance(content, bytes) else b"")


def _origin_of(request: requests.PreparedRequest) -> Origin:
    try:
        parts = urlsplit(request.url or "")
        port = parts.port
    except ValueError as error:
        raise exceptions.InvalidURL(*error.args, request=request) from error
    return Origin(parts.scheme, parts.hostname or "", port or default_port(parts.scheme))
