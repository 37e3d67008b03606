"""gunicorn in its own processes, serving `wsgi_site`: a test holds requests in its workers, resumes or kills them."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from wsgi_driver import Answer
from wsgi_site import RECORDS

from idempotency.stores.sqlite import SyncSQLiteStore

__all__ = ["WORKERS", "Effects", "Gate", "Gunicorn", "Held", "start_gunicorn"]

WORKERS = {"gthread": ["--threads", "8"], "gevent": []}
"""The kinds of workers, and the options of each."""

SUPPORT = Path(__file__).parent


class Effects:
    """The effects of an application of `wsgi_site`, and its records."""

    def __init__(self, data: Path) -> None:
        self._file = data / "effects"
        self._file.touch()
        (data / "file").write_bytes(b"a file")
        self.store = SyncSQLiteStore(data / RECORDS)

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of the requests that ran, in order; their count is the count of effects."""
        return [bytes.fromhex(line[7:]) for line in self.notes if line.startswith("effect ")]

    @property
    def notes(self) -> list[str]:
        """Every line that was written."""
        return self._file.read_text().splitlines()

    def forget(self) -> None:
        """Delete all effects and records."""
        for record in self.store.scan(limit=1_000).records:
            self.store.forget(record.key)
        self._file.write_text("")

    def close(self) -> None:
        """Close the store of the records."""
        self.store.close()


class Held:
    """A request that is held at the gate."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        with connection.makefile("rb") as lines:
            self.pid = int(lines.readline())

    def go_on(self) -> None:
        """Let the request continue."""
        self._connection.close()

    def kill(self) -> None:
        """Kill the process of the request, by SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        self._connection.close()


class Gate:
    """Holds requests for the test, and tells the test the process of each."""

    def __init__(self, listener: socket.socket) -> None:
        listener.settimeout(30)
        self._listener = listener

    def wait(self) -> Held:
        """Wait for the next request that is held."""
        return Held(self._listener.accept()[0])


class Gunicorn:
    """A running server, its effects, and its gate."""

    def __init__(self, port: int, effects: Effects, gate: Gate) -> None:
        self.port = port
        self.effects = effects
        self.gate = gate

    def send(
        self,
        path: str,
        *,
        key: str | None = "k",
        method: str = "POST",
        body: bytes | Iterator[bytes] = b"{}",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request on a connection of its own; a body in parts is sent in chunks."""
        sent = {"Content-Type": "application/json", **(headers or {})}
        if key is not None:
            sent["Idempotency-Key"] = key
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body=body, headers=sent)
            response = connection.getresponse()
            return Answer(response.status, response.getheaders(), response.read())


@contextmanager
def start_gunicorn(kind: str, data: Path) -> Iterator[Gunicorn]:
    """`wsgi_site` in two workers of *kind*, with its effects and records in *data*."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=128) as listener,
        socket.create_server(("127.0.0.1", 0)) as gate,
        closing(Effects(data)) as effects,
    ):
        port, gate_port = listener.getsockname()[1], gate.getsockname()[1]
        command = [sys.executable, "-m", "gunicorn", "wsgi_site:from_environment()"]
        command += ["--pythonpath", str(SUPPORT), "--bind", f"fd://{listener.fileno()}", "--workers", "2"]
        command += ["--worker-class", kind, *WORKERS[kind], "--log-level", "error", "--graceful-timeout", "1"]
        environment = os.environ | {"SITE_DATA": str(data), "SITE_GATE": str(gate_port)}
        with (data / "log").open("wb") as log:
            server = subprocess.Popen(command, env=environment, pass_fds=[listener.fileno()], stderr=log)
        try:
            running = Gunicorn(port, effects, Gate(gate))
            running.send("/", method="GET")  # waits in the queue of the socket until a worker accepts it
            yield running
        finally:
            server.terminate()
            try:
                server.wait(30)
            finally:
                server.kill()
