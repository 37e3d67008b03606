r"""
Runs the application once under a claim, and buffers its response until the record is made (E1).

    UNCLAIMED --- a claim is made before the answer begins --------------> BUFFERING
        |    \--- a claim is refused, or its outcome is recorded --------> REPLACED
        \-------- no claim is made: the answer passes through
    BUFFERING --- the answer is complete: record it ---------------------> ANSWERED
        |    \--- it cannot be kept: record that, then send it (E2) -----> STREAMING
        |    \--- the claim was lost: send the successor's answer (E8) --> REPLACED
        \-------- the application raised: free the key, or record that --> ANSWERED
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, Final

from idempotency._core.actions import RECORDED, Ending, Refuse, Superseded
from idempotency._core.errors import Answered
from idempotency._core.outcome import Headers, Response, encode_response, encode_unreplayable
from idempotency._core.policy import Policy
from idempotency._core.protocol import settle
from idempotency._http.origin_headers import with_origin_of
from idempotency._http.recorded_answer import AnswerEncoder
from idempotency._http.refusal import first_run_failed
from idempotency.engine.current_claim import Frame, active, leave, without
from idempotency.engine.sync_engine import SyncRun
from idempotency.wsgi.handler import RUNS, RequestHandler, status_line, text_headers
from idempotency.wsgi.types import ExceptionInfo, HeaderList, StartResponse, Write, WSGIApp

__all__ = ["ResponseRecorder"]

_log = logging.getLogger("idempotency")

_FILE_WRAPPER: Final = "wsgi.file_wrapper"


class State(Enum):
    """The state of the answer; the drawing above shows the transitions."""

    UNCLAIMED = "unclaimed"
    BUFFERING = "buffering"
    ANSWERED = "answered"
    STREAMING = "streaming"
    REPLACED = "replaced"


class ResponseRecorder:
    """One run of the application; see the drawing above for the states of its answer."""

    def __init__(self, handler: RequestHandler, start_response: StartResponse) -> None:
        self._handler = handler
        self._server_start = start_response
        self._state = State.UNCLAIMED
        self._run: SyncRun | None = None  # None again once it is settled
        self._encoder: AnswerEncoder | None = None
        self._frame: Frame | None = None
        self._outer = active.get()  # the run that the server's thread was in, if any
        self._start: tuple[str, HeaderList] | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._began: float | None = None  # when the first chunk came
        self._replacement: Response | None = None
        self._server_write: Write | None = None  # while STREAMING
        self._application: Iterable[bytes] | None = None  # None again once it is closed
        self._recorded = False
        self._accepted = True
        self._file_wrapper: Any = None
        self._returned = False

    def claim(self, tenant: str | Callable[[], str], policy: Policy) -> bool:
        """
        Claim the operation for this request.

        Returns:
            False if the request already has its answer; what the application answers is dropped then.
        Raises:
            RuntimeError: The answer has begun, or the request was claimed before.
        """
        if self._state is not State.UNCLAIMED or self._start is not None or self._returned:
            raise RuntimeError("claim once, and before the answer begins")
        verdict = self._handler.claim(tenant, policy)
        if isinstance(verdict, Response):
            self._state, self._replacement = State.REPLACED, verdict
            return False
        if verdict is not None:
            self._state, self._run = State.BUFFERING, verdict
            self._enter(verdict, policy)
        return True

    def refuse_input(self) -> None:
        """Note that the framework refused the request's input; with the default policy this frees the key."""
        self._accepted = False

    def run(self, app: WSGIApp) -> Iterable[bytes]:
        """
        Run *app* until its answer is complete or streams. Returns the iterable for the server.

        Raises:
            Exception: *app* raised; its key is settled first.
        """
        if self._replacement is not None:
            return self._replace(self._replacement)  # refused or replayed: the application need not run
        try:
            self._application = application = app(self._handler.environ, self._start_response)
            if self._is(State.UNCLAIMED) and self._start is not None:
                self._application = None  # the server closes it
                return application  # unwrapped, because a server may recognize a file by its type
            rest = iter(application)
            self._read(rest)
        except Exception as error:
            # An `Answered` that this claim did not raise is an error of the application like any other.
            if self._replacement is None or not isinstance(error, Answered):
                if self._run is not None:
                    self._fail()
                self._close_after_failure()
                raise
        except BaseException:  # the worker exits, or its greenlet is killed: the outcome is unknown (E4)
            if self._run is not None:
                self._take_run().abandon()
            self._close_after_failure()
            raise
        finally:
            self._leave()
        if self._replacement is not None:
            self.close()
            return self._replace(self._replacement)
        return _Body(self._chunks, iter(()) if self._is(State.ANSWERED) else self._flow(rest), self)

    def close(self) -> None:
        """
        Close the application's iterable, once, after the server has sent the answer (PEP 3333).

        Raises:
            Exception: The application raised; if its answer was recorded, this is reported to the hooks and the log.
        """
        application, self._application = self._application, None
        close = getattr(application, "close", None)
        try:
            if close is not None:
                with self._under_claim():
                    close()
        finally:
            if self._frame is not None:
                self._frame.end()

    def _flow(self, rest: Iterator[bytes]) -> Iterator[bytes]:
        """The rest of the application's answer; the application runs under its claim until the answer is closed."""
        while True:
            with self._under_claim():
                try:
                    chunk = next(rest)
                except StopIteration:
                    return
            yield chunk

    @contextmanager
    def _under_claim(self) -> Iterator[None]:
        """Run the application's code after `run` under its claim; report an exception if the answer was recorded."""
        token = None if self._frame is None else active.set(self._frame)
        try:
            yield
        except Exception as error:
            if self._recorded and self._frame is not None:
                handler = self._handler
                handler.engine.failed_after_record(error, self._frame.claim, handler.operation)
            raise
        finally:
            if token is not None:
                active.reset(token)

    def _close_after_failure(self) -> None:
        """Let the application clean up; an exception here must not hide the first one."""
        try:
            self.close()
        except Exception:
            _log.exception("close() of a failed answer raised too")

    def _replace(self, answer: Response) -> Iterable[bytes]:
        handler = self._handler
        headers = answer.headers
        if self._start is not None:
            headers = with_origin_of(_bytes_headers(self._start[1]), headers)
        self._server_start(status_line(answer.status), text_headers(headers))
        body = answer.body if handler.environ["REQUEST_METHOD"] != "HEAD" else b""
        if handler.is_too_large:
            return _Refusal(body, handler.discard_body)
        return [body] if body else []

    # The run, for `current_claim()` and inner layers.

    def _enter(self, run: SyncRun, policy: Policy) -> None:
        engine, environ = self._handler.engine, self._handler.environ
        self._encoder = AnswerEncoder(policy, engine.traceparent)
        # Only runs in the environment can enclose this one: the context of the server's thread may hold another run,
        # which is not part of this request.
        runs: tuple[Frame, ...] = environ.get(RUNS, ())
        self._frame = Frame(run.claim, self._encoder, runs[-1] if runs else None)
        environ[RUNS] = (*runs, self._frame)
        self._file_wrapper = environ.pop(_FILE_WRAPPER, None)  # such a file would bypass the recorder (E6)
        active.set(self._frame)

    def _leave(self) -> None:
        self._returned = True
        if self._frame is None:
            return
        leave(self._frame, self._outer)
        environ = self._handler.environ
        environ[RUNS] = without(self._frame, environ.get(RUNS, ()))
        if self._file_wrapper is not None:
            environ[_FILE_WRAPPER] = self._file_wrapper

    # What the application calls.

    def _start_response(
        self, status: str, headers: HeaderList, exc_info: ExceptionInfo | None = None, /
    ) -> Write:
        if exc_info is None and self._start is not None:
            raise AssertionError("the application called start_response twice")  # PEP 3333
        try:
            if self._state is State.UNCLAIMED or self._state is State.STREAMING:
                self._start = (status, headers)
                return self._server_start(status, headers, exc_info)
            if exc_info is not None and exc_info[1] is not None and self._size > 0:
                raise exc_info[1].with_traceback(exc_info[2])  # as a server does after the first byte
            self._start = (status, list(headers))
            return self._write
        finally:
            exc_info = None  # avoids a reference cycle through the traceback (PEP 3333)

    def _write(self, chunk: bytes) -> None:
        if self._state is State.STREAMING:
            assert self._server_write is not None
            self._server_write(chunk)
        elif self._state is State.BUFFERING:
            self._take(chunk)
            if self._is(State.STREAMING):  # send the buffered chunks before the next write
                self._flush()

    # The transitions.

    def _read(self, chunks: Iterator[bytes]) -> None:
        """Take the answer chunk by chunk, until it is complete or is not buffered any more."""
        if self._is(State.UNCLAIMED):
            self._next(chunks)  # a generator begins to run here, and may claim
        if self._is(State.BUFFERING) and self._is_event_stream():
            self._stream("an event stream")
        while self._is(State.BUFFERING):
            self._next(chunks)

    def _next(self, chunks: Iterator[bytes]) -> None:
        chunk = next(chunks, None)
        # Nothing was claimed, or a write() of the application began the stream.
        if not self._is(State.BUFFERING):
            self._chunks = [] if chunk is None else [chunk]
        elif chunk is None:
            self._finish()
        else:
            self._take(chunk)

    def _is(self, state: State) -> bool:
        return self._state is state

    def _take(self, chunk: bytes) -> None:
        if self._start is None:
            raise AssertionError("the application sent a body before it called start_response")
        if not isinstance(chunk, bytes):
            raise TypeError(
                f"a body is made of bytes (PEP 3333), but the application sent {type(chunk).__name__}"
            )
        self._chunks.append(chunk)
        self._size += len(chunk)
        now, policy = self._handler.engine.monotonic(), self._handler.policy
        if self._began is None:
            self._began = now
        if self._size > policy.max_response_bytes:
            self._stream(f"larger than {policy.max_response_bytes} bytes")
        elif self._is_event_stream():
            self._stream("an event stream")
        elif now - self._began > policy.max_hold:
            self._stream(f"still streaming after {policy.max_hold:g} s")

    def _finish(self) -> None:
        """Record the complete answer, then begin to send it (E1)."""
        if self._start is None:
            raise AssertionError("the application ended without calling start_response")
        assert self._encoder is not None
        if self._handler.policy.record == "return":
            self.close()  # before recording, because it may raise
        status, headers = _status(self._start[0]), _bytes_headers(self._start[1])
        if self._is_released(status):
            self._take_run().release()
            return self._begin(State.ANSWERED)
        answer = Response(status, headers, b"".join(self._chunks))
        run = self._take_run()
        outcome, result = self._encoder.encode(answer, run.claim)
        ending = run.keep(outcome, result=result)
        return self._conclude(ending, State.ANSWERED, stored=result == "kept")

    def _stream(self, reason: str) -> None:
        """Record that the answer cannot be kept, then send it as it comes (E2)."""
        assert self._start is not None
        status = _status(self._start[0])
        if self._is_released(status):
            self._take_run().release()
            return self._begin(State.STREAMING)
        ending = self._take_run().keep(encode_unreplayable(reason, status), result="unreplayable")
        return self._conclude(ending, State.STREAMING, stored=False)

    def _conclude(self, ending: Ending, state: State, *, stored: bool) -> None:
        self._recorded = ending is RECORDED
        if isinstance(ending, Superseded):
            self._state, self._replacement = State.REPLACED, self._handler.replay(ending.completed)
        elif isinstance(ending, Refuse):
            self._state, self._replacement = State.REPLACED, self._handler.refuse(ending.error)
        else:
            self._begin(state, stored=stored and ending is RECORDED)

    def _begin(self, state: State, *, stored: bool = False) -> None:
        """Pass the application's status and headers to the server."""
        assert self._start is not None
        rules = self._handler.policy.header_rules
        status, headers = self._start
        headers = [pair for pair in headers if pair[0].lower().encode("latin-1") not in rules.ours]
        if stored:
            headers += text_headers([rules.expires_in])
        self._state = state
        self._server_write = self._server_start(status, headers)

    def _flush(self) -> None:
        chunks, self._chunks = self._chunks, []
        assert self._server_write is not None
        for chunk in chunks:
            self._server_write(chunk)

    def _fail(self) -> None:
        """Free the key after the application raised, or record the failure."""
        run, policy = self._take_run(), self._handler.policy
        if policy.on_exception == "keep":
            run.keep(encode_response(first_run_failed(policy)))
        else:
            run.release()

    def _take_run(self) -> SyncRun:
        run, self._run = self._run, None
        assert run is not None
        return run

    def _is_released(self, status: int) -> bool:
        return settle(status, policy=self._handler.policy, accepted=self._accepted) == "release"

    def _is_event_stream(self) -> bool:
        if self._start is None:
            return False
        return any(
            name.lower() == "content-type" and value[:17].lower() == "text/event-stream"
            for name, value in self._start[1]
        )


class _Body:
    """Iterates over the buffered chunks, then the rest of the application's iterable, and closes it (PEP 3333)."""

    def __init__(self, chunks: list[bytes], rest: Iterator[bytes], recorder: ResponseRecorder) -> None:
        self._chunks = chunks
        self._rest = rest
        self._recorder = recorder

    def __iter__(self) -> Iterator[bytes]:
        yield from self._chunks
        yield from self._rest

    def close(self) -> None:
        """Called by the server after it has sent the answer."""
        self._recorder.close()


class _Refusal:
    """
    An answer to a request that was not read to its end; after the server has sent it, *then* is called.

    With a body, this is when the server asks for the next chunk. Without one, servers may send the headers only at the
    end, so it is when the server closes the answer.
    """

    def __init__(self, body: bytes, then: Callable[[], None]) -> None:
        self._body = body
        self._then = then

    def __iter__(self) -> Iterator[bytes]:
        if self._body:
            yield self._body
            self._then()

    def close(self) -> None:
        """Called by the server after it has sent the answer (PEP 3333)."""
        if not self._body:
            self._then()


def _status(line: str) -> int:
    return int(line[:3])


def _bytes_headers(headers: HeaderList) -> Headers:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
