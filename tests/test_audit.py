"""`scripts/audit` distinguishes no known advisory, a known one, and an unreachable service."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[1] / "scripts/audit"
ADVISORY = {
    "id": "TEST-2026-1",
    "modified": "2026-01-01T00:00:00Z",
    "summary": "a fault made for this test",
    "affected": [{"package": {"name": "numpy", "ecosystem": "PyPI"}}],
}


class Service(ThreadingHTTPServer):
    """Serves the part of the OSV protocol that the scan uses, with an advisory for the package *affected*."""

    affected = ""


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        known = [{"id": ADVISORY["id"], "modified": ADVISORY["modified"]}]
        hits = [query["package"]["name"] == self.server.affected for query in asked]
        self.answer({"results": [{"vulns": known} if hit else {} for hit in hits]})

    def do_GET(self) -> None:
        self.answer(ADVISORY)

    def answer(self, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    with Service(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def audit(port: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [AUDIT, "--service-url", f"http://127.0.0.1:{port}/"],
        env={**os.environ, "UV_HTTP_RETRIES": "0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_audit_succeeds_without_a_known_advisory(service: Service) -> None:
    done = audit(service.server_port)
    assert done.returncode == 0, done.stderr
    assert "no known vulnerabilities" in done.stdout + done.stderr


def test_audit_shows_a_known_advisory_and_fails(service: Service) -> None:
    service.affected = "numpy"
    done = audit(service.server_port)
    assert done.returncode == 1, done.stderr
    assert "TEST-2026-1" in done.stdout + done.stderr


def test_audit_with_an_unreachable_service_exits_with_75() -> None:
    with Service(("127.0.0.1", 0), Handler) as taken:
        port = taken.server_port
    done = audit(port)
    assert done.returncode == 75
    assert "nothing was checked" in done.stderr
