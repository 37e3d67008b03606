"""
The behaviours of the WSGI middleware, called in process, by gunicorn's threads and by its greenlets.

The application is `wsgi_site`; PEP 3333's validator checks both sides of the middleware.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from gunicorn_server import WORKERS, Effects, Gunicorn, start_gunicorn
from patience import until_sync
from wsgi_driver import Answer, call
from wsgi_site import build


class InProcess:
    """The application called as a server calls it: an exception becomes a 500 response."""

    def __init__(self, data: Path, effects: Effects) -> None:
        self.effects = effects
        self._app = build(data, effects.store)

    def send(
        self,
        path: str,
        *,
        key: str | None = "k",
        method: str = "POST",
        body: bytes | Iterator[bytes] = b"{}",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request; a body in parts is sent without a length."""
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
        with closing(Effects(data)) as effects:
            yield InProcess(data, effects)
    else:
        with start_gunicorn(request.param, data) as server:
            yield server


@pytest.fixture
def site(running: Site) -> Site:
    """The application, without effects and records."""
    running.effects.forget()
    return running


@pytest.mark.parametrize("path", ["/charges", "/bare/charges", "/late/charges", "/flask/charges"])
def test_second_request_with_the_key_is_replayed_without_a_second_effect(site: Site, path: str) -> None:
    first, again = site.send(path), site.send(path)
    assert (first.status, first.replayed, first.values("idempotency-expires-in")) == (201, False, ["86400"])
    assert (again.status, again.replayed, again.body) == (201, True, first.body)
    assert again.values("content-type") == ["application/json"]
    assert site.effects.bodies == [b"{}"]


@pytest.mark.parametrize("path", ["/charges", "/late/charges", "/flask/charges"])
def test_requests_without_a_key_all_run(site: Site, path: str) -> None:
    answers = [site.send(path, key=None) for _ in range(2)]
    assert [answer.values("idempotency-expires-in") for answer in answers] == [[], []]
    assert len(site.effects.bodies) == 2


@pytest.mark.rule("E7")
def test_replay_repeats_headers_in_order_except_those_of_one_caller(site: Site) -> None:
    first, again = site.send("/headers"), site.send("/headers")
    for answer in (first, again):
        assert answer.values("link") == ["</a>; rel=next", "</b>; rel=prev"]
        assert (answer.values("etag"), answer.values("x-empty")) == (['"v1"'], [""])
    assert (first.values("set-cookie"), first.values("www-authenticate")) == (["a=1"], ["Basic"])
    assert (again.replayed, again.values("set-cookie"), again.values("www-authenticate")) == (True, [], [])
    assert len(again.values("date")) <= 1


@pytest.mark.parametrize("path", ["/required", "/late/required"])
def test_missing_required_key_is_refused_with_400(site: Site, path: str) -> None:
    answer = site.send(path, key=None)
    assert (answer.status, answer.values("content-type")) == (400, ["application/problem+json"])
    assert site.effects.bodies == []


@pytest.mark.parametrize("path", ["/charges", "/late/charges", "/flask/charges"])
def test_same_key_of_two_users_is_two_records(site: Site, path: str) -> None:
    for user in ("alice", "bob"):
        assert [site.send(path, headers={"X-User": user}).replayed for _ in range(2)] == [False, True]
    assert len(site.effects.bodies) == 2


def test_empty_user_is_refused_before_anything_is_recorded(site: Site) -> None:
    assert site.send("/charges", headers={"X-User": ""}).status == 400
    assert (site.effects.bodies, site.effects.store.scan().records) == ([], ())


@pytest.mark.parametrize("path", ["/charges", "/late/charges", "/flask/charges"])
@pytest.mark.rule("E9")
def test_body_is_compared_by_its_bytes_whatever_its_framing(site: Site, path: str) -> None:
    assert site.send(path, body=b"onetwo").status == 201
    assert site.send(path, body=iter([b"one", b"two"])).replayed
    assert site.send(path, body=iter([b"one", b"three"])).status == 422
    assert site.effects.bodies == [b"onetwo"]


def test_large_body_arrives_whole_and_is_replayed(site: Site) -> None:
    body = bytes(range(256)) * 390
    for replayed in (False, True):
        answer = site.send("/charges", body=body)
        assert (answer.status, answer.replayed) == (201, replayed)
    assert site.effects.bodies == [body]


@pytest.mark.parametrize("in_parts", [False, True])
def test_body_over_the_limit_is_refused_and_the_client_reads_the_refusal(site: Site, in_parts: bool) -> None:
    """The body is longer than socket buffers hold: a server that did not read on would reset the connection."""
    part = b"x" * 1_000_000
    answer = site.send("/charges", body=iter([part] * 12) if in_parts else part * 12)
    assert (answer.status, answer.values("content-type")) == (413, ["application/problem+json"])
    assert (site.effects.bodies, site.effects.store.scan().records) == ([], ())


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_key_is_ignored_for_get_and_head(site: Site, method: str) -> None:
    answers = [site.send("/file", method=method, body=b"") for _ in range(2)]
    assert [(answer.status, answer.replayed) for answer in answers] == [(200, False)] * 2
    assert (len(site.effects.bodies), site.effects.store.scan().records) == (2, ())


# Which responses are recorded.


@pytest.mark.parametrize(("status", "kept"), [(200, True), (422, True), (503, False), (401, False)])
def test_transient_status_and_401_free_the_key(site: Site, status: int, kept: bool) -> None:
    answers = [site.send(f"/status-{status}") for _ in range(2)]
    assert [(answer.status, answer.replayed) for answer in answers] == [(status, False), (status, kept)]
    assert len(site.effects.bodies) == (1 if kept else 2)


def test_response_without_body_is_replayed_without_one(site: Site) -> None:
    for replayed in (False, True):
        answer = site.send("/nothing")
        assert (answer.status, answer.body, answer.replayed) == (204, b"", replayed)
        assert answer.values("content-length") == answer.values("transfer-encoding") == []


@pytest.mark.parametrize(
    "path",
    ["/raises", "/late/raises", "/raises-half-way", "/never-starts", "/starts-twice", "/error-page-too-late"],
)
def test_app_failure_gives_500_and_frees_the_key(site: Site, path: str) -> None:
    for effects in (1, 2):
        assert site.send(path).status == 500
        assert len(site.effects.bodies) == effects
    assert site.effects.store.scan().records == ()


@pytest.mark.parametrize("path", ["/raises-once", "/late/raises-once"])
def test_app_failure_is_replayed_as_500_at_most_once(site: Site, path: str) -> None:
    first, again = site.send(path), site.send(path)
    assert [first.status, again.status, again.replayed] == [500, 500, True]
    assert b"first-run-failed" in again.body
    assert len(site.effects.bodies) == 1


def test_error_page_replaces_a_response_that_was_not_sent(site: Site) -> None:
    for replayed in (False, True):
        answer = site.send("/error-page")
        assert (answer.status, answer.body, answer.replayed) == (410, b"gone", replayed)


def test_record_on_return_frees_key_when_close_of_the_response_fails(site: Site) -> None:
    assert site.send("/commit-fails-first").status == 500
    assert [site.send("/commit-fails-first").replayed for _ in range(2)] == [False, True]
    assert len(site.effects.bodies) == 2


# Ways to make a response.


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
def test_response_is_replayed_whichever_way_the_app_produces_it(site: Site, path: str, body: bytes) -> None:
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
def test_unreplayable_response_is_streamed_and_its_duplicate_gets_409(
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
def test_response_iterable_is_closed_exactly_once(site: Site, path: str, key: str | None) -> None:
    for mark in ("one", "two"):
        site.send(path, key=key and mark, headers={"X-Mark": mark})
        until_sync(
            lambda mark=mark: f"closed {mark}" in site.effects.notes, "the response iterable is closed"
        )
    assert [note for note in site.effects.notes if note in {"closed one", "closed two"}] == [
        "closed one",
        "closed two",
    ]


@pytest.mark.rule("E6")
def test_file_wrapper_is_offered_only_without_a_key(site: Site) -> None:
    assert [site.send("/bare/file", key=key).body for key in ("k", None)] == [b"a file"] * 2
    seen = [note for note in site.effects.notes if note.endswith("wrapped")]
    # The in-process driver offers no wrapper.
    offered = "not wrapped" if isinstance(site, InProcess) else "wrapped"
    assert seen == ["not wrapped", offered]
