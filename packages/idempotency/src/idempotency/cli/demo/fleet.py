"""The demo's two worker processes, and its requests, whose answers it can read or lose."""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from idempotency._core.problem import PROBLEM_TYPE

__all__ = ["Answer", "DemoFailed", "Request", "Worker", "two_workers"]

_PATIENCE: Final = 60.0  # s; only an overloaded machine needs so long


class DemoFailed(Exception):
    """A worker did not do what the demo waits for."""


class Worker:
    """
    A worker process, and the lines that it prints.

    Args:
        name: A or B.
        setup_number: Index in `SETUPS`.
        database: The file that all workers share.
    """

    def __init__(self, name: str, setup_number: int, database: Path) -> None:
        self.name = name
        self._command = [
            sys.executable,
            "-m",
            "idempotency.cli.demo.worker",
            str(setup_number),
            str(database),
        ]
        self._start()

    def _start(self) -> None:
        # Pipes in bytes: a text layer would wait for the rest of a character that a killed worker left half written.
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment()
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_read, args=(self._process, self._lines), daemon=True).start()
        self._port = 0

    @property
    def port(self) -> int:
        """The worker's port; waits until the worker listens."""
        if not self._port:
            self._port = int(self.wait_for("listening").partition(" ")[2])
        return self._port

    def wait_for(self, said: str) -> str:
        """
        The next line that begins with *said*.

        Raises:
            DemoFailed: The worker ended, or printed nothing for a minute.
        """
        while True:
            try:
                line = self._lines.get(timeout=_PATIENCE)
            except queue.Empty:
                line = ""
            if not line:
                raise DemoFailed(f"worker {self.name} did not get to {said!r}")
            if line.startswith(said):
                return line

    def go_on(self) -> None:
        """Let the worker leave the stop that it waits at."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()

    def kill_and_replace(self) -> None:
        """Kill the worker (SIGKILL) and start another in its place."""
        self.kill()
        self._start()

    def kill(self) -> None:
        """Kill the worker (SIGKILL): it cannot answer or clean up."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


def _read(process: subprocess.Popen[bytes], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.put(line.decode().strip())
    except ValueError:  # closed by `kill`
        pass
    lines.put("")


def _environment() -> dict[str, str]:
    """The caller's environment, with this package on the path even if the caller changed `sys.path`."""
    source = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path}


@dataclass(frozen=True, slots=True)
class Answer:
    """
    The response that a client received.

    Attributes:
        status: None if the connection ended without an answer.
        problem: The slug of the problem document, or "".
    """

    status: int | None
    replayed: bool = False
    problem: str = ""


class Request:
    """One attempt to pay for *order*, sent to *worker* at once; as a context manager it closes the connection."""

    def __init__(self, worker: Worker, order: str, *, stop: str = "") -> None:
        self._connection = HTTPConnection("127.0.0.1", worker.port, timeout=_PATIENCE)
        headers = {"Content-Type": "application/json", "Idempotency-Key": f'"{order}"'}
        if stop:
            headers["Demo-Stop"] = stop
        self._connection.request("POST", "/charges", json.dumps({"order": order}), headers)

    def answer(self) -> Answer:
        """The worker's answer; `Answer(None)` if the worker died first."""
        try:
            response = self._connection.getresponse()
            body = response.read()
        except (OSError, HTTPException):
            return Answer(None)
        problem = ""
        if response.status >= 400 and response.headers.get_content_type() == "application/problem+json":
            problem = str(json.loads(body)["type"]).removeprefix(PROBLEM_TYPE)
        return Answer(response.status, response.headers["Idempotency-Replayed"] == "true", problem)

    def lose_answer(self) -> None:
        """Close the connection when the answer arrives, without reading it, as if the network had lost it."""
        select.select([self._connection.sock], [], [], _PATIENCE)
        self._connection.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self._connection.close()


def two_workers(ending: ExitStack, setup_number: int, database: Path) -> tuple[Worker, Worker]:
    """Start A and B; they are killed when *ending* closes."""
    workers = Worker("A", setup_number, database), Worker("B", setup_number, database)
    for worker in workers:
        ending.callback(worker.kill)
    return workers
