"""What becomes of requests when the service is told to stop, and when it is killed."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from engine import BODY, Service, compose_up, patient, podman, until
from tally import Tally

__all__ = ["verify_stop"]

_NAME = "ml-service"
_CLIENTS = 16
_SHUTDOWN_TIMEOUT = 30  # as compose.yaml sets it


def verify_stop(tally: Tally, scratch: Path) -> None:
    """SIGTERM and SIGKILL under load: what was answered is answered again, what was begun is finished or repeated."""
    with compose_up(scratch, patient(scratch)) as service:
        _terminated_under_load(tally, service)
        _terminated_in_the_middle(tally, service)
        _killed_under_load(tally, service)


def _exit_code() -> int:
    code: int = json.loads(podman("inspect", _NAME))[0]["State"]["ExitCode"]
    return code


def _back(service: Service) -> None:
    podman("start", _NAME)
    service.wait()


def _terminated_under_load(tally: Tally, service: Service) -> None:
    with _Load(service, "stop") as load:
        begun = time.perf_counter()
        podman("stop", "-t", "40", _NAME)
        stopped = time.perf_counter() - begun
    code = _exit_code()
    tally.check(
        f"SIGTERM under load: stopped within {_SHUTDOWN_TIMEOUT} s",
        stopped < _SHUTDOWN_TIMEOUT,
        f"{stopped:.2f} s",
    )
    tally.check("with exit code 0, not by the kill", code == 0, code)
    tally.check("no answer broke off in the middle", load.broken == 0, load.broken)
    tally.check("no request was answered with an error", load.errors == [], load.errors[:3])
    tally.figure(
        "requests answered until then, and refused while it stopped", f"{len(load.answered)}, {load.refused}"
    )
    _back(service)
    _replays(tally, service, load)


def _replays(tally: Tally, service: Service, load: _Load) -> None:
    kept = list(load.answered.items())[-300:]
    replays = [(service.predict(key), body) for key, body in kept]
    lost = sum(1 for answer, body in replays if not answer.replayed or answer.body != body)
    tally.check(
        "every answer given before is replayed after it",
        lost == 0 < len(kept),
        f"{len(kept)} asked, {lost} lost",
    )


def _terminated_in_the_middle(tally: Tally, service: Service) -> None:
    lines = (
        "POST /predict HTTP/1.1",
        "Host: x",
        f"X-API-Key: {service.api_key}",
        "Idempotency-Key: half",
        "Content-Type: application/json",
        f"Content-Length: {len(BODY)}",
    )
    half = len(BODY) // 2
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as client:
        client.sendall("\r\n".join((*lines, "", "")).encode() + BODY[:half])
        service.healthy()  # by then it has seen what was sent before
        stop = threading.Thread(target=podman, args=("stop", "-t", "40", _NAME))
        stop.start()
        until("the refusal of new connections", lambda: not _connects(service.port))
        client.sendall(BODY[half:])
        answer = http.client.HTTPResponse(client)
        answer.begin()
        body = answer.read()
        closes = answer.getheader("connection") == "close"
        stop.join()
    tally.check(
        "a request whose body is half sent at SIGTERM is finished", answer.status == 200, answer.status
    )
    tally.check("while new connections are refused, and its own is closed after it", closes)
    tally.check("and the exit code is 0", _exit_code() == 0)
    _back(service)
    again = service.predict("half")
    tally.check("its answer was recorded", again.replayed and again.body == body)


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except ConnectionRefusedError:
        return False
    return True


def _killed_under_load(tally: Tally, service: Service) -> None:
    with _Load(service, "kill") as load:
        podman("kill", "-s", "KILL", _NAME)
        until("the kill", lambda: _exit_code() == 137)
    _back(service)
    begun = time.perf_counter()
    _replays(tally, service, load)
    with ThreadPoolExecutor(_CLIENTS) as pool:
        tries = list(pool.map(lambda key: _repeated(service, key), load.unanswered))
    tally.check(
        "SIGKILL under load: who got no answer gets it by asking again, within the lease of 15 s and a little",
        all(tries),
        f"{len(tries)} after {time.perf_counter() - begun:.1f} s",
    )


def _repeated(service: Service, key: str) -> bool:
    """Ask as a caller should: again, after the time that a 409 or 503 names."""
    end = time.perf_counter() + 60
    while time.perf_counter() < end:
        answer = service.predict(key, timeout=60)
        if answer.status == 200:
            return True
        time.sleep(float(answer.headers.get("retry-after", "1")))
    return False


class _Load:
    """Clients that ask with a new key each time, from the moment that it is entered until it is left."""

    def __init__(self, service: Service, name: str) -> None:
        self._service, self._name, self._over = service, name, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(_CLIENTS)]
        self.answered: dict[str, bytes] = {}
        self.unanswered: list[str] = []
        self.errors: list[int] = []
        self.refused = self.broken = 0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        until("load", lambda: len(self.answered) > 300)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, client: int) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            key = f"{self._name}-{client}-{number}"
            try:
                answer = self._service.predict(key)
            except ConnectionRefusedError:
                self.refused += 1
                time.sleep(0.02)
            except (http.client.IncompleteRead, http.client.BadStatusLine) as error:
                self.unanswered.append(key)
                self.broken += isinstance(error, http.client.IncompleteRead)
            except OSError:  # reset before a byte of an answer
                self.unanswered.append(key)
            else:
                if answer.status == 200:
                    self.answered[key] = answer.body
                else:
                    self.errors.append(answer.status)
