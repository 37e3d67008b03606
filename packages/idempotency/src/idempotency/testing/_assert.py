"""
`assert_idempotent`: repeats, races and interrupts requests to a route of an application, and counts its effects.

Interruptions are systematic, not random: the application's coroutine is driven step by step, so that the client leaves,
or the server cancels, at each point where the coroutine waits for something.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from inspect import isawaitable
from json import dumps
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.parse import unquote
from uuid import uuid4

__all__ = ["Checked", "assert_idempotent"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Effects: TypeAlias = Callable[[], int] | Callable[[], Awaitable[int]]


class Checked(NamedTuple):
    """
    A summary of the checks that were made.

    Attributes:
        steps: The number of points where the application waits for something while it serves one request.
        twins: The number of concurrent requests under one key.
        disconnects: The number of requests whose client left, each at a different step.
        cancellations: The number of requests that the server cancelled, each at a different step.
    """

    steps: int
    twins: int
    disconnects: int
    cancellations: int


async def assert_idempotent(
    app: ASGIApp,
    method: str,
    path: str,
    *,
    effects: Effects,
    json: Any = None,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    twins: int = 5,
    interruptions: int = 20,
    timeout: float = 10.0,
    patience: float = 1.0,
) -> Checked:
    """
    Fail unless one Idempotency-Key has one effect, under repeats, concurrent duplicates, disconnects and cancellations.

    It makes these checks, with fresh keys: the request is sent again; it is sent several times at once; its client
    leaves at each step of the run and then sends it again; the run is cancelled at each step, as by a server that
    stops, and then the request is sent again. Each check must add the effect of one request, and all answers under one
    key must be equal, or 409 while the first request runs. After a cancellation the retry may get 409, because the
    outcome is unknown until the lease ends.

    Args:
        app: Any ASGI application; start its lifespan first if it has one.
        path: The path, with its query string if any.
        effects: Returns the number of effects so far, such as the number of rows in a table; plain or async.
        json: The body as a value, which is encoded.
        body: The body as bytes; give *json* or *body*, not both.
        headers: Further headers, beside `Idempotency-Key`, `Host`, `Content-Length` and, with *json*, `Content-Type`.
        twins: The number of concurrent duplicates.
        interruptions: The most disconnects, and the most cancellations; over longer runs they are spread evenly.
        timeout: Seconds in which every request must be answered.
        patience: Seconds to wait for the answer of a retry after a cancellation; a retry that still waits for its
            duplicate then counts as a 409.
    Raises:
        AssertionError: The message says what was done, what happened, and what that means.

    The lease of the route must be longer than the test: a run that is taken over after its lease may rightly have a
    second effect (at least once). asyncio only.
    """
    if json is not None and body is not None:
        raise TypeError("give json or body, not both")
    content = body or b"" if json is None else dumps(json).encode()
    lines = {"host": "testserver", "content-length": str(len(content))}
    if json is not None:
        lines["content-type"] = "application/json"
    lines |= {name.lower(): value for name, value in (headers or {}).items()}
    route = _Route(app, method.upper(), path, content, lines, timeout)
    check = _Check(route, effects, patience)
    steps = await check.replays()
    await check.races(twins)
    cuts = _spread(steps, interruptions)
    for at in cuts:
        await check.survives_a_disconnect(at, steps)
    for at in cuts:
        await check.survives_a_cancellation(at, steps)
    return Checked(steps, twins, len(cuts), len(cuts))


def _spread(steps: int, limit: int) -> list[int]:
    """At most *limit* of the numbers 1 to *steps*, evenly spread, both ends included."""
    if steps <= limit:
        return list(range(1, steps + 1))
    return sorted({1 + round(index * (steps - 1) / max(limit - 1, 1)) for index in range(limit)})


class _Check:
    """The checks, one method each; `_one` is the effect of one request."""

    def __init__(self, route: _Route, effects: Effects, patience: float) -> None:
        self._route = route
        self._effects = effects
        self._patience = patience
        self._one = 0

    async def replays(self) -> int:
        before = await self._count()
        key = _new_key()
        first = await self._route.request(key)
        if not first.succeeded:
            raise AssertionError(f"the first request must succeed, but was answered {first}")
        self._one = await self._count() - before
        if self._one <= 0:
            raise AssertionError(
                f"the first request was answered {first} and `effects` counts {self._one} more than before it: "
                "count something that the request adds to"
            )
        for nth in ("second", "third"):
            again = await self._route.request(key)
            await self._expect_one(before, f"the {nth} request under one key, answered {again}")
            _expect_same(first, again, f"the {nth} request under one key")
        return first.steps

    async def races(self, twins: int) -> None:
        before = await self._count()
        key = _new_key()
        answers = await asyncio.gather(*(self._route.request(key) for _ in range(twins)))
        what = f"{twins} requests at once under one key, answered {_tally(answers)}"
        await self._expect_one(before, what)
        served = [answer for answer in answers if answer.succeeded]
        if not served:
            raise AssertionError(f"{what}: none of them was served")
        for answer in answers:
            if answer.status != 409:
                _expect_same(served[0], answer, what)
        _expect_same(served[0], await self._route.request(key), f"a retry after {what}")
        await self._expect_one(before, f"a retry after {what}")

    async def survives_a_disconnect(self, at: int, steps: int) -> None:
        before = await self._count()
        key = _new_key()
        await self._route.request(key, cut=_Cut("disconnect", at))
        left = await self._count() - before
        retry = await self._route.request(key)
        what = f"a client that left at step {at} of {steps} ({left} effects by then) and was answered {retry}"
        if not retry.succeeded:
            raise AssertionError(
                f"{what} when it came back: the run must go on to its end without its client"
            )
        await self._expect_one(before, f"{what} when it came back")

    async def survives_a_cancellation(self, at: int, steps: int) -> None:
        before = await self._count()
        key = _new_key()
        await self._route.request(key, cut=_Cut("cancel", at))
        left = await self._count() - before
        retry = await self._route.request(key, patience=self._patience)
        total = await self._count() - before
        what = f"a run cancelled at step {at} of {steps} ({left} effects by then) and sent again, answered {retry}"
        if total > self._one:
            raise AssertionError(
                f"{what}: {total} effects, expected {self._one}; a cancelled run may have had its effect, so its key "
                "must not be free before its lease is over"
            )
        if retry.succeeded and total != self._one:
            raise AssertionError(
                f"{what}: {total} effects, expected {self._one}; the answer tells of an effect that is missing"
            )
        if not retry.succeeded and retry.status not in {None, 409}:
            raise AssertionError(f"{what}: expected the answer, or 409 while the outcome is unknown")

    async def _count(self) -> int:
        count = self._effects()
        return await count if isawaitable(count) else count

    async def _expect_one(self, before: int, what: str) -> None:
        total = await self._count() - before
        if total != self._one:
            raise AssertionError(f"{what}: {total} effects, expected {self._one}")


def _new_key() -> str:
    return f'"{uuid4()}"'


def _expect_same(first: _Answer, other: _Answer, what: str) -> None:
    if (first.status, first.body) != (other.status, other.body):
        raise AssertionError(f"{what}: answered {other}, expected the first answer, {first}")


def _tally(answers: Iterable[_Answer]) -> str:
    statuses = [str(answer.status) for answer in answers]
    return ", ".join(f"{statuses.count(status)} x {status}" for status in sorted(set(statuses)))


# One request.


class _Cut(NamedTuple):
    """A fault, and the step of the request at which it happens, counted from 1."""

    kind: Literal["disconnect", "cancel"]
    step: int


@dataclass(slots=True)
class _Answer:
    """The response as the client saw it; *status* is None if there was none."""

    status: int | None = None
    body: bytes = b""
    steps: int = 0
    whole: bool = False
    error: BaseException | None = field(default=None, repr=False)

    @property
    def succeeded(self) -> bool:
        return self.whole and self.status is not None and 200 <= self.status < 300

    def __str__(self) -> str:
        if self.error is not None:
            return f"by an exception ({self.error!r})"
        if self.status is None:
            return "by nothing"
        text = self.body.decode("utf-8", "backslashreplace")
        return f"{self.status} {text[:200]}{'...' if len(text) > 200 else ''}".rstrip()


class _Route(NamedTuple):
    """The request without its key."""

    app: ASGIApp
    method: str
    path: str
    content: bytes
    headers: Mapping[str, str]
    timeout: float

    async def request(self, key: str, *, cut: _Cut | None = None, patience: float | None = None) -> _Answer:
        """Send the request once, and run the application to its end, including background tasks."""
        exchange = _Exchange(self.content, cut)
        running = asyncio.ensure_future(exchange.drive(self.app, self._scope(key)))
        exchange.task = running
        done, _ = await asyncio.wait([running], timeout=self.timeout if patience is None else patience)
        if not done:
            running.cancel()
            await asyncio.wait([running], timeout=self.timeout)
            if patience is None:
                raise AssertionError(f"{self.method} {self.path} was not answered within {self.timeout:g} s")
        return exchange.answer

    def _scope(self, key: str) -> Scope:
        path, _, query = self.path.partition("?")
        headers = [*self.headers.items(), ("idempotency-key", key)]
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode("ascii"),
            "query_string": query.encode("ascii"),
            "root_path": "",
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
            "client": ("127.0.0.1", 50_000),
            "server": ("testserver", 80),
            "state": {},
        }


class _Exchange:
    """A client and a server around one request."""

    def __init__(self, content: bytes, cut: _Cut | None) -> None:
        self.answer = _Answer()
        self.task: asyncio.Future[None] | None = None
        self._content: bytes | None = content
        self._cut = cut
        self._gone = asyncio.Event()  # the client has left, or has got its whole answer

    async def drive(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await _Stepped(app(scope, self._receive, self._send), self._at_step)
        except asyncio.CancelledError:
            pass  # cancelled by this test
        except Exception as error:
            self.answer.error = error

    def _at_step(self) -> None:
        self.answer.steps += 1
        if self._cut is None or self.answer.steps != self._cut.step:
            return
        if self._cut.kind == "disconnect":
            self._gone.set()
        else:
            assert self.task is not None
            self.task.cancel()

    async def _receive(self) -> Message:
        await asyncio.sleep(0)  # a step, as when reading a socket, at which the client may leave
        if self._content is not None and not self._gone.is_set():
            content, self._content = self._content, None
            return {"type": "http.request", "body": content, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await asyncio.sleep(0)
        if self._gone.is_set():
            return  # servers drop messages for a client that has left
        if message["type"] == "http.response.start":
            self.answer.status = message["status"]
        elif message["type"] == "http.response.body":
            self.answer.body += message.get("body", b"")
            if not message.get("more_body", False):
                self.answer.whole = True
                self._gone.set()


class _Stepped:
    """An awaitable that calls *at_step* before each of its suspensions."""

    def __init__(self, awaitable: Awaitable[None], at_step: Callable[[], None]) -> None:
        self._awaitable = awaitable
        self._at_step = at_step

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self._awaitable.__await__()
        error: BaseException | None = None
        while True:
            try:
                waits_for = next(steps) if error is None else steps.throw(error)
            except StopIteration:
                return
            error = None
            self._at_step()
            try:
                yield waits_for
            except BaseException as thrown:
                error = thrown
