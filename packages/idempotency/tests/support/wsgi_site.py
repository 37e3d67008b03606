"""
A WSGI application with a route for each behaviour, for gunicorn's workers and for calls in the test's own process.

Below `/late` the application claims, below `/flask` the Flask extension does, and below `/bare` there is no validator
of PEP 3333 on either side of the middleware. Effects are lines of the file `effects`, records are in SQLite beside it.

    SITE_DATA  a directory
    SITE_GATE  the port where a test holds requests: see `Gate` in gunicorn_server.py
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from flask import Flask, jsonify, request
from wsgi_driver import validated

from idempotency import Policy
from idempotency.flask import Idempotency
from idempotency.stores.sqlite import SyncSQLiteStore
from idempotency.wsgi import IdempotencyMiddleware, LateClaim, by_environ, claim

__all__ = ["LEASE", "RECORDS", "build", "from_environment"]

App: TypeAlias = Callable[[dict[str, Any], Any], Iterable[bytes]]

RECORDS = "records.db"
LEASE = 0.8  # seconds: how long a test waits for the claim of a killed worker
PLAIN = [("Content-Type", "text/plain")]

POLICIES: dict[str, Policy] = {
    "required": Policy(required=True),
    "raises-once": Policy.at_most_once(),
    "large": Policy(max_response_bytes=7),
    "large-write": Policy(max_response_bytes=7),
    "commit-fails-first": Policy(record="return"),
    "held": Policy(wait=20.0),
    "held-impatient": Policy(prefer_wait=20.0),
    "doomed": Policy(lease=LEASE, wait=20.0),
    "doomed-once": Policy.at_most_once(lease=LEASE),
    "doomed-after-effect": Policy(lease=LEASE, wait=20.0),
    "silent": Policy(max_request_bytes=100_000, render=lambda problem: ("text/plain", b"")),
}
"""By the last part of the path; all others have `OTHERS`."""

OTHERS = Policy(max_request_bytes=100_000)


def from_environment() -> App:
    """The application, as the environment says."""
    data = Path(os.environ["SITE_DATA"])
    return build(data, SyncSQLiteStore(data / RECORDS), gate=int(os.environ["SITE_GATE"]))


def build(data: Path, store: SyncSQLiteStore, *, gate: int = 0) -> App:
    """The application with its records in *store* and its effects in *data*."""
    routes = Routes(data, gate)
    options: dict[str, Any] = {"store": store, "tenant": by_environ("REMOTE_USER"), "policy": _policy}
    early = validated(IdempotencyMiddleware(validated(routes), **options))
    bare = IdempotencyMiddleware(routes, **options)
    late = validated(LateClaim(validated(routes.claiming), store=store))
    flask = _flask(routes, store)

    def site(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        user = environ.pop("HTTP_X_USER", "alice")  # the test names the user: nothing authenticates here
        environ["REMOTE_USER"] = user
        layers = {"late": late, "bare": bare, "flask": flask}
        layer = environ["PATH_INFO"].split("/")[1]
        return layers.get(layer, early)(environ, start_response)

    return site


def _name(environ: dict[str, Any]) -> str:
    return str(environ["PATH_INFO"]).rsplit("/", 1)[-1]


def _policy(environ: dict[str, Any]) -> Policy:
    return POLICIES.get(_name(environ), OTHERS)


class Routes:
    """The behaviours, by the last part of the path; any other path charges."""

    def __init__(self, data: Path, gate: int) -> None:
        self._effects = data / "effects"
        self._gate = gate

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        route: App = getattr(self, _name(environ).replace("-", "_"), self.charge)
        return route(environ, start_response)

    def claiming(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """The same, claimed by the application; `late-generator` claims inside its generator."""
        name = _name(environ)
        if name not in {"late-generator", "unclaimed"}:
            claim(environ, environ["REMOTE_USER"], _policy(environ))
        return self(environ, start_response)

    def note(self, what: str) -> None:
        """Write one line, by one system call."""
        with self._effects.open("a") as effects:
            effects.write(f"{what}\n")

    def closed_by(self, environ: dict[str, Any]) -> Callable[[], None]:
        """A `close` that writes down that the response to this request was closed."""
        mark = environ.get("HTTP_X_MARK", "")
        return lambda: self.note(f"closed {mark}")

    @property
    def number(self) -> int:
        """The number of effects."""
        return self._effects.read_text().count("effect")

    def add_charge(self, environ: dict[str, Any]) -> bytes:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        self.note(f"effect {body.hex()}")
        return b'{"charge": %d}' % self.number

    def hold(self) -> None:
        """Tell the test the process id, and continue when the test opens the gate."""
        with socket.create_connection(("127.0.0.1", self._gate)) as gate:
            gate.sendall(b"%d\n" % os.getpid())
            gate.recv(1)

    def charge(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        answer = self.add_charge(environ)
        start_response(
            "201 Created", [("Content-Type", "application/json"), ("Set-Cookie", "session=secret")]
        )
        return _Closing([answer], self.closed_by(environ))

    # Statuses.

    def status_200(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.add_charge(environ)
        start_response("200 OK", PLAIN)
        return [b"done"]

    def status_422(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.add_charge(environ)
        start_response("422 No", PLAIN)
        return [b"no"]

    def status_503(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.add_charge(environ)
        start_response("503 Busy", PLAIN)
        return [b"busy"]

    def status_401(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.add_charge(environ)
        start_response("401 Who", PLAIN)
        return [b"who"]

    def nothing(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.add_charge(environ)
        start_response("204 No Content", [])
        return []

    def headers(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.add_charge(environ)
        start_response(
            "200 OK",
            [
                ("Content-Type", "text/plain"),
                ("Link", "</a>; rel=next"),
                ("Link", "</b>; rel=prev"),
                ("ETag", '"v1"'),
                ("X-Empty", ""),
                ("Set-Cookie", "a=1"),
                ("WWW-Authenticate", "Basic"),
            ],
        )
        return [b"ok"]

    # Failures.

    def raises(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.add_charge(environ)
        raise LookupError("after the effect")

    raises_once = raises

    def raises_half_way(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.add_charge(environ)
        start_response("200 OK", PLAIN)

        def chunks() -> Iterator[bytes]:
            yield b"half"
            raise LookupError("half-way")

        return _Closing(chunks(), self.closed_by(environ))

    def never_starts(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.add_charge(environ)
        return []

    def starts_twice(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.add_charge(environ)
        start_response("200 OK", PLAIN)
        start_response("200 OK", PLAIN)
        return [b"done"]

    def error_page(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.add_charge(environ)
        start_response("200 OK", PLAIN)
        try:
            raise LookupError
        except LookupError as error:
            start_response("410 Gone", PLAIN, (type(error), error, error.__traceback__))
        return [b"gone"]

    def error_page_too_late(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        self.add_charge(environ)
        start_response("200 OK", PLAIN)
        yield b"half"
        try:
            raise LookupError("half-way")
        except LookupError as error:
            start_response("410 Gone", PLAIN, (type(error), error, error.__traceback__))

    def commit_fails_first(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.add_charge(environ)
        start_response("201 Created", PLAIN)

        def commit() -> None:
            if self.number == 1:
                raise LookupError("the commit failed")

        return _Closing([b"done"], commit)

    # Ways to make a response.

    def events(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.add_charge(environ)
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return _Closing([b"data: 1\n\n", b"data: 2\n\n"], self.closed_by(environ))

    def large(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.add_charge(environ)
        start_response("200 OK", PLAIN)
        return _Closing([b"12345"] * 4, self.closed_by(environ))

    def large_write(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.add_charge(environ)
        write = start_response("200 OK", PLAIN)
        for chunk in (b"one ", b"two ", b"three "):
            write(chunk)
        return [b"four"]

    def write(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.add_charge(environ)
        write = start_response("200 OK", PLAIN)
        write(b"one ")
        write(b"two ")
        return [b"three"]

    def megabyte(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.add_charge(environ)
        start_response("200 OK", [*PLAIN, ("Content-Length", "1000000")])
        return [b"x" * 100_000] * 10

    def generator(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        self.add_charge(environ)
        start_response("201 Created", PLAIN)
        yield b"made late"

    def late_generator(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        claim(environ, environ["REMOTE_USER"])
        yield from self.generator(environ, start_response)

    def file(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.add_charge(environ)
        start_response("200 OK", PLAIN)
        opened = self._effects.with_name("file").open("rb")
        wrapper = environ.get("wsgi.file_wrapper")
        self.note("wrapped" if wrapper else "not wrapped")
        return wrapper(opened) if wrapper else _Closing(opened, opened.close)

    # Requests that are held for the test.

    def held(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Held before its effect."""
        self.hold()
        return self.charge(environ, start_response)

    held_impatient = doomed = doomed_once = held

    def doomed_after_effect(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Held between its effect and its response."""
        answer = self.add_charge(environ)
        self.hold()
        start_response("201 Created", PLAIN)
        return [answer]


class _Closing:
    def __init__(self, chunks: Iterable[bytes], close: Callable[[], None]) -> None:
        self._chunks = chunks
        self.close = close

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._chunks)


def _flask(routes: Routes, store: SyncSQLiteStore) -> App:
    app = Flask("site")
    once = Idempotency(
        app,
        store=store,
        principal=lambda: request.environ["REMOTE_USER"],
        policy=Policy(wait=20.0),
    )

    @app.post("/flask/charges")
    @once.protect
    def charge() -> Any:
        routes.note(f"effect {request.get_data().hex()}")
        return jsonify(charge=routes.number), 201

    @app.post("/flask/doomed", endpoint="doomed")
    @once.protect(policy=POLICIES["doomed"])
    def doomed() -> Any:
        return hold()

    @app.post("/flask/held")
    @once.protect
    def held() -> Any:
        return hold()

    def hold() -> Any:
        routes.hold()
        routes.note(f"effect {request.get_data().hex()}")
        return jsonify(charge=routes.number), 201

    return app  # type: ignore[return-value]
