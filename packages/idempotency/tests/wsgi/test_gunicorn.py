"""Flask under gunicorn: two worker processes, threads or greenlets, real sockets, and a worker that is killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

SUPPORT = Path(__file__).parents[1] / "support"

Send = Callable[..., httpx.Response]


@pytest.fixture(params=["gthread", "gevent"], scope="module")
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Send, Path]]:
    """A function that sends one request to the application, and the directory of its effects."""
    data = tmp_path_factory.mktemp("shop")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    threads = ["--threads", "8"] if request.param == "gthread" else []
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "gunicorn", "wsgi_shop:app", "--pythonpath", str(SUPPORT)),
            *("--bind", f"127.0.0.1:{port}", "--workers", "2", "--worker-class", request.param, *threads),
            *("--log-level", "error", "--graceful-timeout", "2"),
        ],
        env=os.environ | {"SHOP_DATA": str(data), "SHOP_LEASE": "0.8"},
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            _until_it_answers(client)

            def send(key: str, then: str = "", content: Iterator[bytes] | None = None) -> httpx.Response:
                headers = {"X-User": "alice", "Idempotency-Key": key, "Content-Type": "application/json"}
                body = json.dumps({"then": then}).encode() if content is None else content
                return client.post("/charges", headers=headers, content=body)

            yield send, data
    finally:
        server.terminate()
        try:
            server.wait(30)
        finally:
            server.kill()


def _until_it_answers(client: httpx.Client) -> None:
    for _ in range(400):
        try:
            client.get("/")
        except httpx.TransportError:
            time.sleep(0.025)  # another process starts: there is nothing to wait on but its port
        else:
            return
    pytest.fail("gunicorn did not start")


def test_eight_duplicates_over_two_processes_have_one_effect(served: tuple[Send, Path]) -> None:
    send, data = served
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: send("at-once", "sleep"), range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum(answer.headers.get("idempotency-replayed") == "true" for answer in answers) == 7
    assert (data / "at-once").read_text() == "charged\n"


def test_a_worker_killed_before_its_effect_is_taken_over(served: tuple[Send, Path]) -> None:
    send, data = served
    with pytest.raises(httpx.TransportError):
        send("killed", "die")
    assert send("killed", "die").status_code == 201
    assert (data / "killed").read_text() == "charged\n"


def test_a_chunked_body_is_read_whole(served: tuple[Send, Path]) -> None:
    send, data = served
    for replayed in (None, "true"):
        answer = send("chunked", content=iter([b'{"then"', b': ""}']))
        assert (answer.status_code, answer.headers.get("idempotency-replayed")) == (201, replayed)
    assert send("chunked", content=iter([b'{"then"', b': "no"}'])).status_code == 422
    assert (data / "chunked").read_text() == "charged\n"
