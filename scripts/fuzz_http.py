#!/usr/bin/env python3
"""
Throw noise at the HTTP server of `ml-api serve`, over raw sockets: docs/reliability.md.

    uv run scripts/fuzz_http.py                     a minute
    uv run scripts/fuzz_http.py --seconds 5 --seed 7

Each connection sends a few requests, cut into segments at random. Either all are valid, in every odd way that HTTP/1.1
allows, and then each has to be answered in order and a request hidden in a body never; or bytes of them are changed,
dropped, doubled or mixed, and then whatever is answered has to be HTTP, no 500, and the connection has to end in time.
Afterwards the service has to be alive, quick and hardly larger. Prints one line of JSON, and for a broken rule the
bytes that broke it; the same seed makes the same connections.
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

LIMIT = 1.0  # s: each of the service's own limits
PATIENCE = 20.0  # s: for a busy machine
ATTEMPTS = 5  # at a connection with valid requests, while the machine stands still
GROWTH = 64 << 20  # bytes of memory that the service may have more in the end
KEY = secrets.token_hex(16)


class RuleBroken(Exception):
    """The service broke a rule; the message says which."""


class Stalled(Exception):
    """The machine stood still for about the service's limit: valid requests took long to send, or were answered 408."""


@dataclass(frozen=True)
class Exchange:
    """One valid request: its bytes, and what its answer has to be."""

    data: bytes
    request_id: str
    statuses: frozenset[int]


def valid(chance: random.Random, number: int) -> Exchange:
    """A request that HTTP/1.1 allows, with everything optional chosen at random."""
    request_id = f"fuzz-{number}"
    method, path, statuses = chance.choice(
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
    lines = [f"{chance.choice(['Host', 'host', 'HOST'])}: service{chance.choice(['', ':80', ':'])}"]
    if chance.random() < 0.5:
        key = chance.choice([KEY, "wrong"])
        lines.append(f"X-API-Key: {key}")
        if key == KEY:
            statuses = statuses | {404, 405, 409, 415, 422}
    lines.append(
        f"X-Request-ID:{chance.choice(['', ' ', chr(9)])}{request_id}{chance.choice(['', ' ', chr(9)])}"
    )
    lines += [
        f"x-{chance.randrange(10**6)}: {'v' * chance.randrange(200)}" for _ in range(chance.randrange(20))
    ]
    if chance.random() < 0.3:
        lines += [
            "Connection: Upgrade, HTTP2-Settings",
            f"Upgrade: {chance.choice(['h2c', 'websocket', 'x/1'])}",
        ]
    hidden = b"GET /health HTTP/1.1\r\nHost: service\r\nX-Request-ID: hidden\r\n\r\n"
    body = chance.choice(
        [b"", b"{}", hidden, hidden * 3, b"\r\n\r\n", bytes(chance.randrange(256) for _ in range(99))]
    )
    framing = chance.choice(["none", "length", "chunks"])
    if framing == "none":
        body = b""
    elif framing == "length":
        lines.append(f"Content-Length: {len(body)}")
    else:
        lines.append("Transfer-Encoding: chunked")
        body = chunked(chance, body)
    chance.shuffle(lines)
    data = "\r\n".join((f"{method} {path} HTTP/1.1", *lines, "", "")).encode() + body
    return Exchange(b"\r\n" * (chance.random() < 0.1) + data, request_id, frozenset(statuses))


def chunked(chance: random.Random, body: bytes) -> bytes:
    """*body* in chunks, with extensions, leading zeros and trailers."""
    parts = []
    while body:
        size = chance.randrange(1, len(body) + 1)
        extension = chance.choice([b"", b";a", b";a=b", b';a="b;c"'])
        parts.append(b"%b%x%b\r\n%b\r\n" % (b"0" * chance.randrange(4), size, extension, body[:size]))
        body = body[size:]
    trailers = b"".join(
        chance.choice([b"x-a: b\r\n", b"X-Request-ID: hidden\r\n", b"Host: other\r\n"])
        for _ in range(chance.randrange(4))
    )
    return b"".join(parts) + b"0\r\n" + trailers + b"\r\n"


def changed(chance: random.Random, data: bytes) -> bytes:
    """*data* with some bytes changed, dropped, doubled, or replaced by what parsers stumble over."""
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
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice([0, 0, 1, 1, 2, 8, 64]))
        middle = chance.choice([b"", chance.choice(noise), data[at:end] * 2, bytes([chance.randrange(256)])])
        data = data[:at] + middle + data[end:]
    return data


def segments(chance: random.Random, data: bytes) -> list[bytes]:
    """*data* cut at a few places."""
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice([0, 0, 1, 3, 9])))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < end]


def send(connection: socket.socket, parts: list[bytes], *, at_once: bool) -> None:
    """Send *parts*; where they have to be sent *at_once*, tell by `Stalled` that they were not."""
    begun = time.monotonic()
    try:
        for part in parts:
            connection.sendall(part)
    finally:
        if at_once and time.monotonic() - begun > LIMIT / 2:
            raise Stalled


def talk(port: int, parts: list[bytes], *, finish: bool) -> bytes:
    """Send *parts*, end the sending where *finish*, and return all that is answered until the service closes."""
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
    Status and request id of each answer in *received*, and whether it says that the connection is closed after it.

    *heads* says which are to HEAD and so have no body.
    """
    found: list[tuple[int, str, bool]] = []
    while received:
        head, separator, received = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        if not separator or not first.startswith("HTTP/1.1 ") or not first[9:12].isdigit():
            raise RuleBroken(f"not an answer: {head[:200]!r}")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status, length = int(first[9:12]), int(fields.get("content-length", "0"))
        if status >= 500 and status not in {503, 505}:
            raise RuleBroken(f"answered {status}")
        bodiless = len(found) < len(heads) and heads[len(found)] and "x-request-id" in fields
        if not bodiless:
            if len(received) < length:
                raise RuleBroken(f"an answer of {length} bytes ends after {len(received)}")
            received = received[length:]
        found.append((status, fields.get("x-request-id", ""), fields.get("connection") == "close"))
    return found


def hold(port: int, parts: list[bytes], exchanges: list[Exchange], *, broken: bool) -> None:
    """Send *parts*, which are *exchanges*, or were and are *broken* now; hold what is answered to the rules."""
    received = talk(port, parts, finish=not broken)
    if broken:
        if b"HEAD" not in b"".join(parts):
            answers(received, [])
        return
    heads = [b"HEAD " in exchange.data[:7] for exchange in exchanges]
    found = answers(received, heads)
    # A refusal may end the connection, and an answer that came before its request was whole does: it says so, and
    # what was sent behind it was not read (RFC 9112, 9.6).
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


def one_connection(chance: random.Random, port: int, number: int) -> bytes:
    """Hold one connection to the rules, again where the machine stood still; return what was sent."""
    exchanges = [valid(chance, number * 10 + index) for index in range(chance.randrange(1, 5))]
    data = b"".join(exchange.data for exchange in exchanges)
    broken = chance.random() < 0.6
    if broken:
        data = changed(chance, data)
    parts = segments(chance, data)
    for _ in range(ATTEMPTS):
        try:
            hold(port, parts, exchanges, broken=broken)
        except Stalled:
            continue
        except RuleBroken as error:
            raise RuleBroken(f"connection {number}: {error}\n{parts!r}") from None
        return data
    raise RuleBroken(f"connection {number} was slow or answered 408 {ATTEMPTS} times\n{parts!r}")


def resident(process: int) -> int:
    """Bytes of memory that *process* has resident."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuleBroken("the service is gone")


def healthy(port: int) -> bool:
    """Whether /health answers, quickly."""
    begun = time.monotonic()
    request = b"GET /health HTTP/1.1\r\nHost: service\r\nConnection: close\r\n\r\n"
    try:
        return answers(talk(port, [request], finish=True), [])[0][0] == 200 and time.monotonic() - begun < 5
    except (OSError, RuleBroken, IndexError):
        return False


def serve(directory: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start the service with short limits."""
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
    """Open connections for *seconds*, *lanes* at a time; raise where a rule is broken."""
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
    """Print one line of JSON: exit 0 where every rule held, 1 where one broke."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz_http.py", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=32, help="connections at a time; most wait for a limit")
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
