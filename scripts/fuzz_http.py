#!/usr/bin/env python3
"""
Fuzzes the HTTP server of `ml-api serve` over raw sockets: docs/reliability.md.

    uv run scripts/fuzz_http.py                     a minute
    uv run scripts/fuzz_http.py --seconds 5 --seed 7

Each connection sends a few requests, divided into segments at random. On some connections all requests are valid, in
every unusual form that HTTP/1.1 allows: then each must be answered in order, and a request that is hidden in a body
must not be answered. On the others, bytes are changed, dropped, doubled or mixed: then each answer must be HTTP and not
500, and the connection must end in time. At the end the service must answer quickly and must not have grown much.
Prints one line of JSON, and for a broken rule the bytes that broke it. The same seed makes the same connections.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

LIMIT = 1.0  # s: each of the service's own timeouts
PATIENCE = 20.0  # s: long enough for a busy machine
ATTEMPTS = 5  # most attempts at a connection with valid requests, if the machine pauses
GROWTH = 64 << 20  # bytes by which the service's memory may grow
KEY = secrets.token_hex(16)


class RuleBroken(Exception):
    """The service broke a rule; the message says which."""


class Stalled(Exception):
    """The machine paused for about the service's timeout: valid requests were sent too slowly, or were answered 408."""


@dataclass(frozen=True)
class Exchange:
    """One valid request: its bytes, its id, and the allowed statuses of its answer."""

    data: bytes
    request_id: str
    statuses: frozenset[int]


def valid(rng: random.Random, number: int) -> Exchange:
    """Return a request that HTTP/1.1 allows, with its optional parts chosen at random."""
    request_id = f"fuzz-{number}"
    method, path, statuses = rng.choice(
        [
            ("GET", "/health", {200}),
            ("GET", "/ready?a=%20", {200}),
            ("GET", "/no/such/path", {401}),
            ("POST", "/health", {401, 405}),
            ("POST", "/predict", {401}),
            ("HEAD", "/health", {200}),
            ("OPTIONS", "/health", {401, 405}),
            ("DELETE", "/%70redict", {401}),
        ]
    )
    lines = [f"{rng.choice(['Host', 'host', 'HOST'])}: service{rng.choice(['', ':80', ':'])}"]
    if rng.random() < 0.5:
        key = rng.choice([KEY, "wrong"])
        lines.append(f"X-API-Key: {key}")
        if key == KEY:
            statuses = statuses | {404, 405, 409, 415, 422}
    lines.append(f"X-Request-ID:{rng.choice(['', ' ', chr(9)])}{request_id}{rng.choice(['', ' ', chr(9)])}")
    lines += [f"x-{rng.randrange(10**6)}: {'v' * rng.randrange(200)}" for _ in range(rng.randrange(20))]
    if rng.random() < 0.3:
        lines += [
            "Connection: Upgrade, HTTP2-Settings",
            f"Upgrade: {rng.choice(['h2c', 'websocket', 'x/1'])}",
        ]
    hidden = b"GET /health HTTP/1.1\r\nHost: service\r\nX-Request-ID: hidden\r\n\r\n"
    body = rng.choice(
        [b"", b"{}", hidden, hidden * 3, b"\r\n\r\n", bytes(rng.randrange(256) for _ in range(99))]
    )
    framing = rng.choice(["none", "length", "chunks"])
    if framing == "none":
        body = b""
    elif framing == "length":
        lines.append(f"Content-Length: {len(body)}")
    else:
        lines.append("Transfer-Encoding: chunked")
        body = chunked(rng, body)
    rng.shuffle(lines)
    data = "\r\n".join((f"{method} {path} HTTP/1.1", *lines, "", "")).encode() + body
    return Exchange(b"\r\n" * (rng.random() < 0.1) + data, request_id, frozenset(statuses))


def chunked(rng: random.Random, body: bytes) -> bytes:
    """Return *body* in chunks, with extensions, leading zeros and trailers."""
    parts = []
    while body:
        size = rng.randrange(1, len(body) + 1)
        extension = rng.choice([b"", b";a", b";a=b", b';a="b;c"'])
        parts.append(b"%b%x%b\r\n%b\r\n" % (b"0" * rng.randrange(4), size, extension, body[:size]))
        body = body[size:]
    trailers = b"".join(
        rng.choice([b"x-a: b\r\n", b"X-Request-ID: hidden\r\n", b"Host: other\r\n"])
        for _ in range(rng.randrange(4))
    )
    return b"".join(parts) + b"0\r\n" + trailers + b"\r\n"


def changed(rng: random.Random, data: bytes) -> bytes:
    """Return *data* with some bytes changed, dropped, doubled, or replaced by bytes that often confuse parsers."""
    noise = [
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b";",
        b",",
        b"0",
        b"-1",
        b"\xff",
        b"\x80",
        b"HTTP/1.1",
    ]
    noise += [
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Host: b\r\n",
        b"ffffffffffffffff",
        b"\x16\x03\x01",
    ]
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice([0, 0, 1, 1, 2, 8, 64]))
        middle = rng.choice([b"", rng.choice(noise), data[at:end] * 2, bytes([rng.randrange(256)])])
        data = data[:at] + middle + data[end:]
    return data


def segments(rng: random.Random, data: bytes) -> list[bytes]:
    """Return *data* divided at a few random places."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice([0, 0, 1, 3, 9])))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < end]


def send(connection: socket.socket, parts: list[bytes], *, at_once: bool) -> None:
    """Send *parts*; with *at_once*, raise `Stalled` if that took longer than half of the service's timeout."""
    begun = time.monotonic()
    try:
        for part in parts:
            connection.sendall(part)
    finally:
        if at_once and time.monotonic() - begun > LIMIT / 2:
            raise Stalled


def send_and_read(port: int, parts: list[bytes], *, finish: bool) -> bytes:
    """
    Send *parts*, and return all bytes until the service closes the connection.

    *finish*: the parts are valid requests, so a reset breaks a rule, and slow sending raises `Stalled`.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = bytearray()
        try:
            send(connection, parts, at_once=finish)
            while data := connection.recv(65_536):
                received += data
        except TimeoutError:
            raise RuleBroken(f"the connection is open after {PATIENCE:g} s") from None
        except OSError:
            if finish:
                raise RuleBroken("a connection with valid requests was reset") from None
        return bytes(received)


def answers(received: bytes, heads: list[bool]) -> list[tuple[int, str, bool]]:
    """
    Return status and request id of each answer in *received*, and whether it has `Connection: close`.

    *heads* says which requests are HEAD, so that their answers have no body.
    """
    found: list[tuple[int, str, bool]] = []
    while received:
        head, separator, received = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        if not separator or not first.startswith("HTTP/1.1 ") or not first[9:12].isdigit():
            raise RuleBroken(f"not an answer: {head[:200]!r}")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status, length = int(first[9:12]), int(fields.get("content-length", "0"))
        if status >= 500 and status not in {501, 503, 505}:  # 501 is for an unknown transfer coding
            raise RuleBroken(f"answered {status}")
        bodiless = len(found) < len(heads) and heads[len(found)] and "x-request-id" in fields
        if not bodiless:
            if len(received) < length:
                raise RuleBroken(f"an answer of {length} bytes ends after {len(received)}")
            received = received[length:]
        found.append((status, fields.get("x-request-id", ""), fields.get("connection") == "close"))
    return found


def check_connection(port: int, parts: list[bytes], exchanges: list[Exchange], *, broken: bool) -> None:
    """Send *parts*, the bytes of *exchanges* (damaged if *broken*), and check the answers by the rules."""
    received = send_and_read(port, parts, finish=not broken)
    if broken:
        if b"HEAD" not in b"".join(parts):
            answers(received, [])
        return
    heads = [b"HEAD " in exchange.data[:7] for exchange in exchanges]
    found = answers(received, heads)
    # A refusal may close the connection, and an answer that is sent before its request was complete must. Such an
    # answer has `Connection: close`, and the requests behind it are not read (RFC 9112, 9.6).
    ended = any(status == 401 or closed for status, _, closed in found)
    if len(found) < len(exchanges) and not ended:
        raise RuleBroken(f"{len(exchanges)} valid requests, {len(found)} answers: {found}")
    for (status, request_id, _), exchange in zip(found, exchanges, strict=False):
        if status == 408:
            raise Stalled
        if request_id != exchange.request_id or status not in exchange.statuses:
            raise RuleBroken(f"{exchange.request_id} was answered {status} as {request_id!r}")
    if len(found) > len(exchanges):
        raise RuleBroken(f"more answers than requests: {found}")


def one_connection(rng: random.Random, port: int, number: int) -> bytes:
    """Check one connection, again if the machine paused; return the bytes that were sent."""
    exchanges = [valid(rng, number * 10 + index) for index in range(rng.randrange(1, 5))]
    data = b"".join(exchange.data for exchange in exchanges)
    broken = rng.random() < 0.6
    if broken:
        data = changed(rng, data)
    parts = segments(rng, data)
    for _ in range(ATTEMPTS):
        try:
            check_connection(port, parts, exchanges, broken=broken)
        except Stalled:
            continue
        except RuleBroken as error:
            raise RuleBroken(f"connection {number}: {error}\n{parts!r}") from None
        return data
    raise RuleBroken(f"connection {number} was slow or answered 408 {ATTEMPTS} times\n{parts!r}")


def resident(process: int) -> int:
    """Return the resident memory of *process* in bytes."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuleBroken("the service is gone")


def healthy(port: int) -> bool:
    """Whether /health answers within 5 s."""
    begun = time.monotonic()
    request = b"GET /health HTTP/1.1\r\nHost: service\r\nConnection: close\r\n\r\n"
    try:
        return (
            answers(send_and_read(port, [request], finish=True), [])[0][0] == 200
            and time.monotonic() - begun < 5
        )
    except (OSError, RuleBroken, IndexError):
        return False


def serve(directory: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start the service with short timeouts; return its process and port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ML_SERVICE_")}
    for name in ("HEADER", "BODY", "KEEP_ALIVE", "WRITE"):
        environment[f"ML_SERVICE_{name}_TIMEOUT"] = str(LIMIT)
    environment |= {"ML_SERVICE_API_KEY": KEY, "ML_SERVICE_STORE_PATH": str(directory / "store.sqlite3")}
    with (directory / "log").open("wb") as log:
        command = [sys.executable, "-m", "ml_api", "serve", "--port", str(port)]
        process = subprocess.Popen(command, env=environment, cwd=directory, stderr=log)
    deadline = time.monotonic() + PATIENCE * 2
    while not healthy(port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuleBroken("the service did not start: " + (directory / "log").read_text()[-2000:])
        time.sleep(0.05)
    return process, port


def fuzz(seconds: float, seed: int, lanes: int) -> dict[str, object]:
    """Open connections for *seconds*, *lanes* at a time; raise `RuleBroken` if a rule is broken."""
    from concurrent.futures import ThreadPoolExecutor

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        process, port = serve(directory)
        try:
            one_connection(random.Random(seed), port, 0)
            before, begun, numbers = resident(process.pid), time.monotonic(), iter(range(1, 10**9))

            def lane(_: int) -> int:
                count = 0
                while time.monotonic() - begun < seconds:
                    number = next(numbers)
                    one_connection(random.Random(f"{seed}/{number}"), port, number)
                    count += 1
                return count

            with ThreadPoolExecutor(lanes) as pool:
                connections = sum(pool.map(lane, range(lanes)))
            if process.poll() is not None:
                raise RuleBroken("the service died: " + (directory / "log").read_text()[-2000:])
            if not healthy(port):
                raise RuleBroken("/health does not answer afterwards")
            grown = resident(process.pid) - before
            if grown > GROWTH:
                raise RuleBroken(f"the service grew by {grown} bytes")
            if "Traceback" in (log := (directory / "log").read_text()):
                raise RuleBroken("the log has a traceback: " + log[log.index("Traceback") - 500 :][:3000])
            return {
                "target": "http",
                "seed": seed,
                "connections": connections,
                "grown_bytes": grown,
                "crashes": 0,
            }
        finally:
            process.terminate()
            process.wait(PATIENCE * 2)


def main() -> int:
    """Print one line of JSON; exit with 0 if every rule held, with 1 if one was broken."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz_http.py", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--lanes", type=int, default=32, help="connections at a time; most of them wait for a timeout"
    )
    options = parser.parse_args()
    try:
        print(json.dumps(fuzz(options.seconds, options.seed, options.lanes)), flush=True)
    except RuleBroken as error:
        print(error, file=sys.stderr)
        print(json.dumps({"target": "http", "seed": options.seed, "crashes": 1}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
