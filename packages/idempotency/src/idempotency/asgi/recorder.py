"""
The application's one run under a claim, and its answer on the way out: held back, recorded, then sent (E1).

An answer that cannot be kept (E2) is recorded as done and then flows; one that lost its claim gives way to its
successor's (E8). By `Policy(record="return")` a whole answer is held until the application has returned.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable
from contextvars import Token
from typing import Any, Literal, Protocol

from idempotency._backends.base import Signal, Timer, running
from idempotency._core.decide import NOT_ROUTED, Refuse, settle
from idempotency._core.errors import IdempotencyError
from idempotency._core.machine import RECORDED, Ending, Superseded
from idempotency._core.outcome import Headers, Response, encode_response, encode_unreplayable
from idempotency._core.policy import Policy
from idempotency._core.problem import handler_failed
from idempotency._core.recorded import encode_recorded
from idempotency._core.types import Claim, Completed, key_id
from idempotency.asgi.before_handler import (
    BEFORE_HANDLER,
    answered_before_handler,
    is_routed,
    raised_before_handler,
)
from idempotency.asgi.scope import enter, leave
from idempotency.asgi.types import ASGIApp, Message, Receive, Scope, Send
from idempotency.engine import Engine
from idempotency.engine.current_claim import Frame, active
from idempotency.engine.run import Run

__all__ = ["Exchange", "Execution"]

_log = logging.getLogger("idempotency")


class Exchange(Protocol):
    """What a run needs of the request that it answers."""

    engine: Engine
    policy: Policy
    scope: Scope
    send: Send

    @property
    def operation(self) -> str:
        """The request's name in events."""

    async def replay(self, completed: Completed, waited: float) -> None:
        """Answer with a recorded outcome."""

    async def refuse(self, error: IdempotencyError) -> None:
        """Answer with a problem."""


class Execution:
    """
    The application's one run under a claim, and its answer: held back until the record is made (E1).

    Four states: holding back (`_run` is set); whole, and held until the application returns (`_whole`); recorded
    (`_flowing`: what the application sends goes straight out); or answered otherwise (`_swallowing`: the record of a
    successor went out in its place, E8).
    """

    __slots__ = (
        "_ambient",
        "_body",
        "_chunks",
        "_entered",
        "_exchange",
        "_flowing",
        "_handled",
        "_hold",
        "_lock",
        "_receive",
        "_recorded",
        "_result",
        "_run",
        "_scope",
        "_size",
        "_start",
        "_swallowing",
        "_whole",
        "claim",
        "frame",
    )

    def __init__(self, exchange: Exchange, run: Run, body: bytes | None, receive: Receive) -> None:
        self._exchange = exchange
        self._scope = exchange.scope
        self._receive = receive
        self._run: Run | None = run  # until it is settled
        self.claim = run.claim
        self._body: bytes | None = body  # until the application has read it
        self._start: Message | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._flowing = self._swallowing = self._whole = False
        self._handled = True  # False once it is known that the framework answered before a handler began
        self._result: str | None = None  # what the record holds, once it is made
        self._ambient = sys.exception()  # the caller's, which the application's answer has nothing to do with
        self._recorded: Signal | None = None  # only where the application waits for a disconnect
        self._hold: Timer | None = None
        self._lock: Any = None  # only once the answer is a stream: then the hold's timer is a second writer

    async def of(self, app: ASGIApp) -> None:
        """Run *app* to its end, whatever the client's connection does."""
        token = self.enter()
        try:
            await app(self._scope, self.receive, self.send)
        except BaseException as error:
            await self.raised(error)
            raise
        else:
            await self.returned()
        finally:
            self.leave()
            active.reset(token)

    def enter(self) -> Token[Frame | None]:
        """What runs in this context from now on is the run."""
        self.frame = Frame(self.claim, self, active.get())
        self._entered = enter(self._scope, self.frame)
        return active.set(self.frame)

    def leave(self) -> None:
        """The application is over; the context is the caller's to reset."""
        self.frame.end()
        leave(self._scope, self._entered)

    async def raised(self, error: BaseException) -> None:
        """The application raised *error*, which goes on to the server."""
        if isinstance(error, Exception):
            if self._run is not None:
                await self._fail(error)
            else:
                await self._until_sent()
                self._report(error)
        elif self._run is not None:
            self._take_run().abandon()  # cancelled: the outcome is unknown, the lease decides (E4)
        elif self._result == "kept":  # a stream is cancelled whenever its client leaves
            self._report(error)

    async def returned(self) -> None:
        """The application returned."""
        if self._whole and self._start is not None:
            await self._finish(self._start)
        elif self._run is not None:
            await self._end_incomplete()
        elif self._lock is not None:
            await self._until_sent()

    # What `current_claim()` shows of the run (`current_claim.OutcomeEncoder`).

    @property
    def retention(self) -> float:
        """Seconds, from the policy."""
        return self._exchange.policy.retention

    def outcome(self, answer: Any, _: Claim) -> bytes:
        """*answer*, a `Response`, as `_finish` would record it."""
        if not isinstance(answer, Response):
            raise TypeError(
                f"outcome() takes an idempotency.Response(status, headers, body), not a {type(answer).__qualname__}"
            )
        limit = self._exchange.policy.max_response_bytes
        if len(answer.body) > limit:
            return encode_unreplayable(f"larger than {limit} bytes", answer.status)
        return self._encode(answer.status, answer.headers, answer.body)[0]

    async def receive(self) -> Message:
        """What the application receives."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        if not (self._flowing or self._swallowing or self._whole):
            if self._recorded is None:  # no disconnect is seen until the record is made (E5)
                self._recorded = running().signal()
            await self._recorded.wait()
        if self._whole:
            return {"type": "http.disconnect"}  # as a server says it once the answer is whole
        token = active.set(self.frame.enclosing)  # see _send_out
        try:
            return await self._receive()
        finally:
            active.reset(token)

    async def send(self, message: Message) -> None:
        """What the application sends."""
        if self._lock is None:
            due = self._send_out(message) if self._flowing else self._hold_back(message)
            if due is not None:
                await due
        else:
            async with self._lock:
                due = self._send_out(message) if self._flowing else self._hold_back(message)
                if due is not None:
                    await due

    async def _send_out(self, message: Message) -> None:
        # Not under our claim: a server begins the connection's next request in here, which inherits the context.
        token = active.set(self.frame.enclosing)
        try:
            await self._exchange.send(message)
        finally:
            active.reset(token)

    def _hold_back(self, message: Message) -> Awaitable[None] | None:
        """Keep a message; what is due by it, if anything is."""
        if self._swallowing:
            return None
        kind = message["type"]
        if kind == "http.response.start":
            if self._start is not None:  # as a server says it: two answers must not be recorded as one
                raise RuntimeError("the application sent http.response.start twice")
            headers = message.get("headers")
            if type(headers) is not list:  # any iterable is allowed, and here it is read more than once
                message = {**message, "headers": list(headers or ())}
            self._start = message
            status, error = message["status"], sys.exception()
            if status >= 300 or error is not self._ambient or BEFORE_HANDLER in self._scope:
                error = None if error is self._ambient else error
                self._handled = not answered_before_handler(self._scope, status, error)
            return self._let_flow("an event stream") if _is_event_stream(message["headers"]) else None
        if kind != "http.response.body" or self._start is None:
            return self._exchange.send(message)
        if self._whole:
            raise RuntimeError("the application sent http.response.body after the last one")
        chunk, more_body = message.get("body", b""), message.get("more_body", False)
        self._chunks.append(chunk)
        self._size += len(chunk)
        limit = self._exchange.policy.max_response_bytes
        if self._size > limit:
            return self._let_flow(f"larger than {limit} bytes", more_body=more_body)
        if not more_body:
            if self._exchange.policy.record == "answer":
                return self._finish(self._start)
            self._wait_for_return()
            return None
        if self._hold is None:
            runtime = running()
            self._lock = runtime.lock()
            self._hold = runtime.after(self._exchange.policy.max_hold, self._end_hold)
        return None

    def _wait_for_return(self) -> None:
        """The answer is whole: hold it until the application has returned."""
        self._whole = True
        if self._hold is not None:
            self._hold.cancel()
        self._let_disconnects_pass()

    async def _finish(self, start: Message) -> None:
        """The answer is whole, and due: record it, then send it (E1)."""
        self._whole = False
        status: int = start["status"]
        if not self._is_kept(status):
            await self._take_run().release()
            return await self._send_own(start)
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        outcome, result = self._encode(status, start["headers"], bytes(body))
        ending = await self._take_run().keep(outcome, result=result)
        if ending is RECORDED:
            self._result = result
        return await self._answer(start, ending, stored=result == "kept")

    def _encode(
        self, status: int, headers: Headers, body: bytes
    ) -> tuple[bytes, Literal["kept", "unreplayable"]]:
        """The record of an answer; a tombstone where it cannot be kept, since the effect is there already (E2)."""
        engine = self._exchange.engine
        traceparent = engine.traceparent() if engine.hooks else None
        outcome, reason = encode_recorded(Response(status, headers, body, traceparent), self._exchange.policy)
        if reason is None:
            return outcome, "kept"
        _log.error("%s: the answer is not kept, its retries get 409 (key %s)", reason, key_id(self.claim.key))
        return outcome, "unreplayable"

    async def _end_hold(self) -> None:
        async with self._lock:
            if self._run is not None and not self._whole:
                await self._let_flow(f"still streaming after {self._exchange.policy.max_hold:g} s")

    async def _let_flow(self, reason: str, *, more_body: bool = True) -> None:
        """The answer cannot be kept: say so in the record, then let it go (E2)."""
        start = self._start
        assert start is not None
        status: int = start["status"]
        if self._is_kept(status):
            outcome = encode_unreplayable(reason, status)
            ending = await self._take_run().keep(outcome, result="unreplayable")
            if ending is RECORDED:
                self._result = "unreplayable"
            await self._answer(start, ending, stored=False, more_body=more_body)
        else:
            await self._take_run().release()
            await self._send_own(start, more_body=more_body)

    def _answer(
        self, start: Message, ending: Ending, *, stored: bool, more_body: bool = False
    ) -> Awaitable[None]:
        if isinstance(ending, Superseded | Refuse):
            return self._give_way(ending)
        return self._send_own(start, stored=stored and ending is RECORDED, more_body=more_body)

    async def _give_way(self, ending: Superseded | Refuse) -> None:
        """The claim was lost: answer what is true now, and swallow what the application still sends."""
        self._swallowing = True
        self._let_disconnects_pass()
        token = active.set(None)  # see _send_out
        try:
            if isinstance(ending, Superseded):
                await self._exchange.replay(ending.completed, 0.0)
            else:
                await self._exchange.refuse(ending.error)
        finally:
            active.reset(token)

    async def _send_own(self, start: Message, *, stored: bool = False, more_body: bool = False) -> None:
        """Send what was held back, and from now on everything at once."""
        send, wire = self._exchange.send, self._exchange.policy.wire
        self._flowing = True
        self._let_disconnects_pass()
        headers = start["headers"]
        for name, _ in headers:
            if name.lower() in wire.ours:
                headers = [pair for pair in headers if pair[0].lower() not in wire.ours]
                break
        if stored:
            headers = [*headers, wire.expires_in]
        chunks, self._chunks = self._chunks, []
        last = len(chunks) - 1
        token = active.set(None)  # see _send_out
        try:
            await send({**start, "headers": headers})
            for index, chunk in enumerate(chunks):
                await send(
                    {"type": "http.response.body", "body": chunk, "more_body": more_body or index < last}
                )
        finally:
            active.reset(token)

    async def _fail(self, error: Exception | None) -> None:
        """The handler raised: free the key or record that it failed; the exception goes on to the server."""
        run, policy = self._take_run(), self._exchange.policy
        handled = error is None or not (BEFORE_HANDLER in self._scope or raised_before_handler(error))
        if policy.on_exception == "keep" and handled:
            await run.keep(encode_response(handler_failed(policy.documentation_url)))
        else:
            await run.release()

    async def _end_incomplete(self) -> None:
        """The handler returned without a whole answer: to the key an exception, to the server a broken answer."""
        await self._fail(None)
        if self._start is not None:
            await self._send_own(self._start, more_body=True)

    def _report(self, error: BaseException) -> None:
        """The application raised after its answer was recorded, which is what retries will get."""
        if self._result is None:
            return  # nothing of this run was recorded: its key is free, or another's
        self._exchange.engine.failed_after_record(error, self.claim, self._exchange.operation)

    async def _until_sent(self) -> None:
        """Wait for the hold's timer where it has begun: once the application is over, nobody may send for it."""
        if self._lock is not None:
            async with self._lock:
                pass

    def _take_run(self) -> Run:
        run, self._run = self._run, None
        assert run is not None
        if self._hold is not None:
            self._hold.cancel()
        return run

    def _is_kept(self, status: int) -> bool:
        policy = self._exchange.policy
        routed = status not in NOT_ROUTED or is_routed(self._scope)
        return settle(status, policy=policy, routed=routed, handled=self._handled) == "keep"

    def _let_disconnects_pass(self) -> None:
        if self._recorded is not None:
            self._recorded.set()


def _is_event_stream(headers: Headers) -> bool:
    for name, value in headers:
        if name == b"content-type":
            return value[:17].lower() == b"text/event-stream"
    return False
