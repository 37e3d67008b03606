"""
The behaviours of the WSGI middleware, called in process, by gunicorn's threads and by its greenlets.

On both sides of the middleware stands PEP 3333's validator; the application is `wsgi_site`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from gunicorn_server import WORKERS, Effects, Gunicorn, start_gunicorn
from patience import until_sync
from wsgi_driver import Answer, call
from wsgi_site import build


class InProcess:
    """The application called as a server calls it; like a server it answers 500 for what was raised."""

    def __init__(self, data: Path) -> None:
        self.effects = Effects(data)
        self._app = build(data)

    def send(
        self,
        path: str,
        *,
        key: str | None = "k",
        method: str = "POST",
        body: bytes | Iterator[bytes] = b"{}",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request; a body in parts has no length."""
        sent = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in (headers or {}).items()}
        framing: dict[str, Any]
        if isinstance(body, bytes):
            framing = {"CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}
        else:
            whole = io.BytesIO(b"".join(body))
            framing = {"CONTENT_LENGTH": None, "wsgi.input": whole, "wsgi.input_terminated": True}
        try:
            return call(self._app, method=method, path=path, key=key, **framing, **sent)
        except Exception:
            return Answer(500)


Site = InProcess | Gunicorn


@pytest.fixture(scope="module", params=["in process", *WORKERS])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    data = tmp_path_factory.mktemp("site")
    if request.param == "in process":
        yield InProcess(data)
    else:
        with start_gunicorn(request.param, data) as server:
            yield server


@pytest.fixture
def site(running: Site) -> Site:
    """The application, which has done nothing yet."""
    running.effects.forget()
    return running


@pytest.mark.parametrize("path", ["/charges", "/bare/charges", "/late/charges", "/flask/charges"])
def test_a_key_has_one_effect_and_a_faithful_replay(site: Site, path: str) -> None:
    first, again = site.send(path), site.send(path)
    assert (first.status, first.replayed, first.values("idempotency-expires-in")) == (201, False, ["86400"])
    assert (again.status, again.replayed, again.body) == (201, True, first.body)
    assert again.values("content-type") == ["application/json"]
    assert site.effects.bodies == [b"{}"]


@pytest.mark.parametrize("path", ["/charges", "/late/charges", "/flask/charges"])
def test_a_request_without_a_key_is_the_applications_own(site: Site, path: str) -> None:
    answers = [site.send(path, key=None) for _ in range(2)]
    assert [answer.values("idempotency-expires-in") for answer in answers] == [[], []]
    assert len(site.effects.bodies) == 2


@pytest.mark.rule("E7")
def test_headers_are_recorded_in_order_and_repeated_but_for_those_of_one_caller(site: Site) -> None:
    first, again = site.send("/headers"), site.send("/headers")
    for answer in (first, again):
        assert answer.values("link") == ["</a>; rel=next", "</b>; rel=prev"]
        assert (answer.values("etag"), answer.values("x-empty")) == (['"v1"'], [""])
    assert (first.values("set-cookie"), first.values("www-authenticate")) == (["a=1"], ["Basic"])
    assert (again.replayed, again.values("set-cookie"), again.values("www-authenticate")) == (True, [], [])
    assert len(again.values("date")) <= 1


@pytest.mark.parametrize("path", ["/required", "/late/required"])
def test_a_key_may_be_required(site: Site, path: str) -> None:
    answer = site.send(path, key=None)
    assert (answer.status, answer.values("content-type")) == (400, ["application/problem+json"])
    assert site.effects.bodies == []


@pytest.mark.parametrize("path", ["/charges", "/late/charges", "/flask/charges"])
def test_keys_of_two_users_never_meet(site: Site, path: str) -> None:
    for user in ("alice", "bob"):
        assert [site.send(path, headers={"X-User": user}).replayed for _ in range(2)] == [False, True]
    assert len(site.effects.bodies) == 2


def test_nobody_is_refused_before_the_store_is_asked(site: Site) -> None:
    assert site.send("/charges", headers={"X-User": ""}).status == 400
    assert (site.effects.bodies, site.effects.store.scan().records) == ([], ())


@pytest.mark.parametrize("path", ["/charges", "/late/charges", "/flask/charges"])
@pytest.mark.rule("E9")
def test_another_body_is_another_request_however_it_is_framed(site: Site, path: str) -> None:
    assert site.send(path, body=b"onetwo").status == 201
    assert site.send(path, body=iter([b"one", b"two"])).replayed
    assert site.send(path, body=iter([b"one", b"three"])).status == 422
    assert site.effects.bodies == [b"onetwo"]


def test_a_large_body_arrives_whole(site: Site) -> None:
    body = bytes(range(256)) * 390
    for replayed in (False, True):
        answer = site.send("/charges", body=body)
        assert (answer.status, answer.replayed) == (201, replayed)
    assert site.effects.bodies == [body]


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_body_over_the_limit_is_refused_and_the_refusal_is_read(site: Site, in_parts: bool) -> None:
    """It is longer than what sockets hold: a server that did not read on would reset the connection."""
    part = b"x" * 1_000_000
    answer = site.send("/charges", body=iter([part] * 12) if in_parts else part * 12)
    assert (answer.status, answer.values("content-type")) == (413, ["application/problem+json"])
    assert (site.effects.bodies, site.effects.store.scan().records) == ([], ())


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_key_of_another_method_does_not_count(site: Site, method: str) -> None:
    answers = [site.send("/file", method=method, body=b"") for _ in range(2)]
    assert [(answer.status, answer.replayed) for answer in answers] == [(200, False)] * 2
    assert (len(site.effects.bodies), site.effects.store.scan().records) == (2, ())


# What is kept.


@pytest.mark.parametrize(("status", "kept"), [(200, True), (422, True), (503, False), (401, False)])
def test_a_transient_answer_or_a_refusal_frees_the_key(site: Site, status: int, kept: bool) -> None:
    answers = [site.send(f"/status-{status}") for _ in range(2)]
    assert [(answer.status, answer.replayed) for answer in answers] == [(status, False), (status, kept)]
    assert len(site.effects.bodies) == (1 if kept else 2)


def test_an_answer_without_a_body_is_replayed_without_one(site: Site) -> None:
    for replayed in (False, True):
        answer = site.send("/nothing")
        assert (answer.status, answer.body, answer.replayed) == (204, b"", replayed)
        assert answer.values("content-length") == answer.values("transfer-encoding") == []


@pytest.mark.parametrize(
    "path",
    ["/raises", "/late/raises", "/raises-half-way", "/never-starts", "/starts-twice", "/error-page-too-late"],
)
def test_an_application_that_fails_is_a_500_and_frees_the_key(site: Site, path: str) -> None:
    for effects in (1, 2):
        assert site.send(path).status == 500
        assert len(site.effects.bodies) == effects
    assert site.effects.store.scan().records == ()


@pytest.mark.parametrize("path", ["/raises-once", "/late/raises-once"])
def test_an_application_that_fails_is_never_repeated_at_most_once(site: Site, path: str) -> None:
    first, again = site.send(path), site.send(path)
    assert [first.status, again.status, again.replayed] == [500, 500, True]
    assert b"first-run-failed" in again.body
    assert len(site.effects.bodies) == 1


def test_an_error_page_may_replace_an_answer_that_was_not_sent(site: Site) -> None:
    for replayed in (False, True):
        answer = site.send("/error-page")
        assert (answer.status, answer.body, answer.replayed) == (410, b"gone", replayed)


def test_an_answer_may_count_only_once_the_application_has_closed_it(site: Site) -> None:
    assert site.send("/commit-fails-first").status == 500
    assert [site.send("/commit-fails-first").replayed for _ in range(2)] == [False, True]
    assert len(site.effects.bodies) == 2


# How an answer is made.


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/write", b"one two three"),
        ("/generator", b"made late"),
        ("/late/generator", b"made late"),
        ("/late/late-generator", b"made late"),
        ("/megabyte", b"x" * 1_000_000),
        ("/file", b"a file"),
        ("/bare/file", b"a file"),
    ],
)
def test_an_answer_is_recorded_however_it_is_made(site: Site, path: str, body: bytes) -> None:
    for replayed in (False, True):
        answer = site.send(path)
        assert (answer.status // 100, answer.body, answer.replayed) == (2, body, replayed)
    assert len(site.effects.bodies) == 1


@pytest.mark.rule("E2")
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/events", b"data: 1\n\ndata: 2\n\n"),
        ("/large", b"12345" * 4),
        ("/late/large", b"12345" * 4),
        ("/large-write", b"one two three four"),
    ],
)
def test_an_answer_that_cannot_be_kept_flows_and_is_never_run_again(
    site: Site, path: str, body: bytes
) -> None:
    assert site.send(path).body == body
    again = site.send(path)
    assert (again.status, len(site.effects.bodies)) == (409, 1)
    assert b"not-replayable" in again.body


@pytest.mark.parametrize(
    ("path", "key"),
    [
        *((path, "k") for path in ("/charges", "/raises-half-way", "/large", "/events", "/late/charges")),
        *((path, None) for path in ("/charges", "/large", "/events", "/late/charges")),
    ],
)
def test_an_answer_is_closed_exactly_once(site: Site, path: str, key: str | None) -> None:
    for mark in ("one", "two"):
        site.send(path, key=key and mark, headers={"X-Mark": mark})
        until_sync(lambda mark=mark: f"closed {mark}" in site.effects.notes, "after its answer was sent")
    assert [note for note in site.effects.notes if note in {"closed one", "closed two"}] == [
        "closed one",
        "closed two",
    ]


@pytest.mark.rule("E6")
def test_a_file_is_sent_by_the_server_itself_only_where_there_is_no_key(site: Site) -> None:
    assert [site.send("/bare/file", key=key).body for key in ("k", None)] == [b"a file"] * 2
    seen = [note for note in site.effects.notes if note.endswith("wrapped")]
    offered = "not wrapped" if isinstance(site, InProcess) else "wrapped"  # the driver has no wrapper
    assert seen == ["not wrapped", offered]
