"""
Runs the application once under a claim: buffers its response, records it, then sends it (E1).

An answer that cannot be kept (E2) is recorded as done and then forwarded as it comes. If the claim was lost, the answer
of the run that took over is sent (E8). Under `Policy(record="return")` a complete answer is held back until the
application has returned. The states are in `idempotency.asgi.states`; `docs/recorder-states.md` draws them.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable
from typing import Any

from idempotency._core.actions import RECORDED, Ending, Refuse, Superseded
from idempotency._core.outcome import Response, encode_response, encode_unreplayable
from idempotency._core.protocol import NOT_ROUTED, settle
from idempotency._core.types import Claim
from idempotency._http.recorded_answer import AnswerEncoder, record_of
from idempotency._http.refusal import first_run_failed
from idempotency._runtime.event_loop import Signal, Timer, running
from idempotency.asgi.before_handler import (
    BEFORE_HANDLER,
    answered_before_handler,
    is_routed,
    raised_before_handler,
)
from idempotency.asgi.request_handler import RequestHandler
from idempotency.asgi.scope import enter, leave
from idempotency.asgi.states import State
from idempotency.asgi.types import ASGIApp, Message, Receive
from idempotency.engine.current_claim import Frame, active
from idempotency.engine.current_claim import leave as leave_run
from idempotency.engine.run import Run

__all__ = ["ResponseRecorder"]

_BUFFERING, _WHOLE, _RECORDING = State.BUFFERING, State.WHOLE, State.RECORDING
_FAILED, _FORWARDING, _DISCARDING = State.FAILED, State.FORWARDING, State.DISCARDING
# Looked up once: each request sets and resets the context twice.
_innermost, _set_active, _reset_active = active.get, active.set, active.reset
_new = tuple.__new__  # builds a named tuple in half the time of its constructor, a Python function


class ResponseRecorder:
    """
    One run of the application and its answer, which is held back until it is recorded (E1).

    Args:
        handler: The request to answer.
        run: The claimed run.
        body: The request body, if it was read before; None if *receive* gives it.
        receive: The server's `receive`.
    """

    __slots__ = (
        "_ambient",
        "_body",
        "_chunks",
        "_handled",
        "_handler",
        "_hidden",
        "_hold",
        "_lock",
        "_policy",
        "_receive",
        "_recorded",
        "_result",
        "_run",
        "_scope",
        "_size",
        "_start",
        "_state",
        "claim",
        "frame",
    )

    def __init__(self, handler: RequestHandler, run: Run, body: bytes | None, receive: Receive) -> None:
        self._handler = handler
        self._policy = handler.policy
        self._scope = handler.scope
        self._receive = receive
        self._run = run
        self.claim: Claim = run.claim
        self._body = body  # None once the application has read it
        self._state = _BUFFERING
        self._start: Message | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._handled = True  # False if the framework answered before a handler began
        self._result: str | None = None  # "kept" or "unreplayable", after recording
        self._ambient = sys.exception()  # the caller's exception, to be told from the application's
        self._recorded: Signal | None = None  # made only if the application waits for a disconnect
        self._hold: Timer | None = None
        self._lock: Any = None  # made only for a stream, where the timer of the hold is a second writer

    async def run(self, app: ASGIApp) -> None:
        """Run *app* to its end, even if the client disconnects."""
        self.enter()
        try:
            await app(self._scope, self.receive, self.send)
        except BaseException as error:
            await self.raised(error)
            raise
        else:
            if self._state is not _FORWARDING or self._lock is not None:  # else its answer is sent
                await self.returned()
        finally:
            self.leave()

    def enter(self) -> None:
        """Begin the run: all code in this context from now on is part of it."""
        self.frame: Frame = Frame(self.claim, self, _innermost())
        self._hidden = enter(self._scope, self.frame)
        _set_active(self.frame)

    def leave(self) -> None:
        """End the run, after the application."""
        frame = self.frame
        frame.end()
        enclosing = frame.enclosing
        if enclosing is None and _innermost() is frame:  # nearly always
            _set_active(None)
        else:
            leave_run(frame, enclosing)
        leave(self._scope, frame, self._hidden)

    async def raised(self, error: BaseException) -> None:
        """Settle a run whose application raised *error*; the caller re-raises it to the server."""
        unsettled = self._state is _BUFFERING or self._state is _WHOLE
        if isinstance(error, Exception):
            if unsettled:
                await self._fail(error)
            else:
                await self._until_sent()
                self._report(error)
        elif unsettled:
            self._take_failed_run().abandon()  # cancelled: the outcome is unknown, so the claim stays (E4)
        elif self._result == "kept":  # not for a stream, which is cancelled whenever its client leaves
            self._report(error)

    async def returned(self) -> None:
        """Settle a run whose application returned."""
        if self._state is _WHOLE:
            try:
                await self._record_answer()
            except Exception as error:  # from an outer layer, while the recorded answer is sent
                self._report(error)
                raise
        elif self._state is _BUFFERING:
            # Without a complete answer: treat the key as after an exception, and send the incomplete answer.
            await self._fail(None)
            if self._start is not None:
                await self._flush(more_body=True)
        else:
            await self._until_sent()

    # The `OutcomeEncoder` of `current_claim()`.

    @property
    def retention(self) -> float:
        """Seconds that the record is kept, from the policy."""
        return self._policy.retention

    def outcome(self, answer: Any, _: Claim) -> bytes:
        """*answer*, a `Response`, as it would be recorded."""
        return AnswerEncoder(self._policy, self._handler.engine.traceparent).outcome(answer, self.claim)

    # What the application receives and sends.

    async def receive(self) -> Message:
        """The application's `receive` callable."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        state = self._state
        if state is _BUFFERING or state is _RECORDING or state is _FAILED:
            # The application sees no disconnect before the outcome is recorded (E5).
            if self._recorded is None:
                self._recorded = running().signal()
            await self._recorded.wait()
        if self._state is _WHOLE:
            return {"type": "http.disconnect"}  # as a server sends it once the answer is complete
        token = _set_active(self.frame.enclosing)  # see _forward
        try:
            return await self._receive()
        finally:
            _reset_active(token)

    async def send(self, message: Message) -> None:
        """The application's `send` callable."""
        if self._lock is None:
            due = self._buffer(message) if self._state is _BUFFERING else self._send_late(message)
            if due is not None:
                await due
        else:
            async with self._lock:
                due = self._buffer(message) if self._state is _BUFFERING else self._send_late(message)
                if due is not None:
                    await due

    def _buffer(self, message: Message) -> Awaitable[None] | None:
        """Hold a message back; returns what has to be done now because of it, if anything."""
        kind = message["type"]
        if self._start is None:
            return self._begin(message) if kind == "http.response.start" else self._handler.send(message)
        if kind != "http.response.body":
            if kind == "http.response.start":  # a server refuses it too; two answers are not recorded as one
                raise RuntimeError("the application sent http.response.start twice")
            return self._handler.send(message)
        chunk, more_body = message.get("body", b""), message.get("more_body", False)
        self._chunks.append(chunk)
        self._size = size = self._size + len(chunk)
        policy = self._policy
        if size > policy.max_response_bytes:
            reason = f"larger than {policy.max_response_bytes} bytes"
            return self._start_streaming(reason, more_body=more_body)
        if more_body:
            if self._hold is None:
                self._arm_hold()
            return None
        if policy.record == "answer":
            return self._record_answer()
        self._hold_until_return()
        return None

    def _begin(self, message: Message) -> Awaitable[None] | None:
        """Hold the start of the answer back, unless it is an event stream; returns what `_buffer` does."""
        headers = message.get("headers")
        if type(headers) is not list:  # any iterable is allowed, but it is read more than once here
            headers = list(headers or ())
            message = {**message, "headers": headers}
        self._start = message
        status, error = message["status"], sys.exception()
        if status >= 300 or error is not self._ambient or BEFORE_HANDLER in self._scope:
            error = None if error is self._ambient else error
            self._handled = not answered_before_handler(self._scope, status, error)
        for name, value in headers:
            if name == b"content-type":
                return self._start_event_stream() if value[:17].lower() == b"text/event-stream" else None
        return None

    def _send_late(self, message: Message) -> Awaitable[None] | None:
        """Handle a message that comes after the answer was recorded or replaced."""
        if self._state is _FORWARDING:
            return self._forward(message)
        if self._state is _DISCARDING:
            return None
        if message["type"] == "http.response.start":
            raise RuntimeError("the application sent http.response.start twice")
        if message["type"] == "http.response.body":
            raise RuntimeError("the application sent http.response.body after the last one")
        return self._handler.send(message)

    async def _forward(self, message: Message) -> None:
        # Outside this run: a server may start the connection's next request in here, and it inherits the context.
        token = _set_active(self.frame.enclosing)
        try:
            await self._handler.send(message)
        finally:
            _reset_active(token)

    # The record.

    async def _record_answer(self) -> None:
        """Record the complete answer, then send it (E1)."""
        start = self._start
        assert start is not None
        status: int = start["status"]
        if not self._is_kept(status):
            await self._take_run().release()
            return await self._flush()
        engine = self._handler.engine
        traceparent = engine.traceparent() if engine.hooks else None
        answer: Response = _new(Response, (status, start["headers"], b"".join(self._chunks), traceparent))
        outcome, result = record_of(answer, self._policy, self.claim)
        ending = await self._take_run().keep(outcome, result=result)
        if ending is RECORDED:
            self._result = result
            return await self._flush(stored=result == "kept")
        return await self._answer(ending)

    async def _start_streaming(self, reason: str, *, more_body: bool = True) -> None:
        """Record that the answer cannot be kept, then forward it as it comes (E2)."""
        start = self._start
        assert start is not None
        status: int = start["status"]
        if not self._is_kept(status):
            await self._take_run().release()
            return await self._flush(more_body=more_body)
        ending = await self._take_run().keep(encode_unreplayable(reason, status), result="unreplayable")
        if ending is RECORDED:
            self._result = "unreplayable"
        return await self._answer(ending, more_body=more_body)

    async def _start_event_stream(self) -> None:
        self._lock = running().lock()  # another task of the application may send the first event meanwhile
        async with self._lock:
            await self._start_streaming("an event stream")

    def _arm_hold(self) -> None:
        """Start the timer that ends the buffering of an answer in parts after `max_hold`."""
        runtime = running()
        self._lock = runtime.lock()
        self._hold = runtime.after(self._policy.max_hold, lambda: runtime.spawn(self._end_hold))

    async def _end_hold(self) -> None:
        async with self._lock:
            if self._state is _BUFFERING:
                await self._start_streaming(f"still streaming after {self._policy.max_hold:g} s")

    async def _answer(self, ending: Ending, *, more_body: bool = False) -> None:
        if isinstance(ending, Superseded | Refuse):
            await self._send_successor(ending)
        else:
            await self._flush(more_body=more_body)

    async def _fail(self, error: Exception | None) -> None:
        """Free the key of a failed run, or record the failure; the caller re-raises *error*."""
        run, policy = self._take_failed_run(), self._policy
        handled = error is None or not (BEFORE_HANDLER in self._scope or raised_before_handler(error))
        if policy.on_exception == "keep" and handled:
            await run.keep(encode_response(first_run_failed(policy)))
        else:
            await run.release()

    def _is_kept(self, status: int) -> bool:
        routed = status not in NOT_ROUTED or is_routed(self._scope)
        return settle(status, policy=self._policy, routed=routed, handled=self._handled) == "keep"

    def _report(self, error: BaseException) -> None:
        """Report that the application raised after its answer was recorded; retries get that answer."""
        if self._result is None:
            return  # this run recorded nothing: its key is free, or another run's
        self._handler.engine.failed_after_record(error, self.claim, self._handler.operation)

    async def _until_sent(self) -> None:
        """Wait for a send that the timer of the hold has begun: nothing may be sent after the application ended."""
        if self._lock is not None:
            async with self._lock:
                pass

    # The transitions (`idempotency.asgi.states.TRANSITIONS`). Only these methods set the state.

    def _hold_until_return(self) -> None:
        self._state = _WHOLE
        if self._hold is not None:
            self._hold.cancel()
        self._let_disconnects_pass()

    def _take_run(self) -> Run:
        """The run, which the caller now ends."""
        self._state = _RECORDING
        if self._hold is not None:
            self._hold.cancel()
        return self._run

    def _take_failed_run(self) -> Run:
        """The run, which the caller now ends because the application gave no complete answer."""
        self._state = _FAILED
        if self._hold is not None:
            self._hold.cancel()
        return self._run

    async def _flush(self, *, stored: bool = False, more_body: bool = False) -> None:
        """Send what was held back; from now on messages are forwarded at once."""
        send, rules, start = self._handler.send, self._policy.header_rules, self._start
        assert start is not None
        self._state = _FORWARDING
        if self._recorded is not None:
            self._recorded.set()
        headers, ours = start["headers"], rules.ours
        for name, _ in headers:
            if name.lower() in ours:
                headers = [pair for pair in headers if pair[0].lower() not in ours]
                break
        if stored:
            headers = [*headers, rules.expires_in]
        chunks, self._chunks = self._chunks, []
        token = _set_active(None)  # see _forward
        try:
            await send({**start, "headers": headers})
            if chunks:
                last = chunks.pop()
                for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": last, "more_body": more_body})
        finally:
            _reset_active(token)

    async def _send_successor(self, ending: Superseded | Refuse) -> None:
        """Answer for a lost claim with the current record, and drop what the application sends from now on."""
        self._state = _DISCARDING
        self._let_disconnects_pass()
        token = _set_active(None)  # see _forward
        try:
            if isinstance(ending, Superseded):
                await self._handler.replay(ending.completed, 0.0)
            else:
                await self._handler.refuse(ending.error)
        finally:
            _reset_active(token)

    def _let_disconnects_pass(self) -> None:
        if self._recorded is not None:
            self._recorded.set()
