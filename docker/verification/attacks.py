"""What strangers may try on the open port: keys, sizes, speeds and malformed requests."""

from __future__ import annotations

import socket
from pathlib import Path

from engine import BODY, Service, call
from image import bare
from tally import Tally

__all__ = ["verify_attacks"]

_LARGE = b"[" * 2_097_152
_DAWDLERS = 200


def verify_attacks(tally: Tally, _: Path) -> None:
    """Wrong keys, oversized, nested, malformed and slow requests, against one bare container."""
    with bare("-e", "ML_SERVICE_BODY_TIMEOUT=2", "-e", "ML_SERVICE_HEADER_TIMEOUT=2") as service:
        _keys(tally, service)
        _sizes(tally, service)
        _malformed(tally, service)
        _slow_clients(tally, service)
        tally.check("after all of this it decides as before", service.predict("afterwards").status == 200)


def _keys(tally: Tally, service: Service) -> None:
    mine = service.predict("guarded")
    answer = Service(service.port, "x" * 64).predict("guarded")
    unseen = answer.status == 401 and not answer.replayed and mine.status == 200
    tally.check("a wrong API key learns nothing, not even of a replay", unseen)
    missing = call(service.port, "POST", "/predict", body=b"{}", Content_Type="application/json")
    tally.check("nor does a missing one", missing.status == 401)
    large = Service(service.port, "").predict(body=_LARGE)
    tally.check("who has no key gets no further with a large body", large.status in {401, 413}, large.status)
    odd = service.predict("k" * 300)
    tally.check("an Idempotency-Key of 300 characters is refused", odd.status == 400, odd.status)
    injected = service.predict('x" EX 1')
    tally.check(
        "one full of Redis syntax is only a key, or refused", injected.status in {200, 400}, injected.status
    )


def _sizes(tally: Tally, service: Service) -> None:
    tally.check("a body of 2 MiB is refused", service.predict("large", body=_LARGE).status == 413)
    chunk = b"10000\r\n" + b"[" * 0x10000 + b"\r\n"
    head = _head(service, "Transfer-Encoding: chunked")
    tally.check("so is one in chunks that never says its size", _sent(service, head, *[chunk] * 32) == b"413")
    head = _head(service, "Content-Length: 1000000000000")
    tally.check("one that announces a terabyte is refused at once", _sent(service, head) == b"413")
    deep = service.predict("deep", body=b"[" * 500_000)
    tally.check("a body nested 500,000 deep is refused", deep.status in {400, 422}, deep.status)
    headers = call(service.port, "GET", "/health", X_Filler="x" * 60_000)
    tally.check("headers of 60 kB are refused", headers.status == 431)


def _malformed(tally: Tally, service: Service) -> None:
    both = _head(service, f"Content-Length: {len(BODY)}", "Transfer-Encoding: chunked")
    tally.check(
        "a request with two lengths is refused, not split", _sent(service, both, b"0\r\n\r\n") == b"400"
    )
    tally.check(
        "what is not HTTP is refused",
        _sent(service, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n") in {b"400", b""},
    )
    negative = _sent(service, _head(service, "Content-Length: -1"))
    tally.check("a negative length is refused", negative == b"400", negative.decode())


def _head(service: Service, *lines: str) -> bytes:
    given = ("Host: x", f"X-API-Key: {service.api_key}", "Content-Type: application/json", *lines)
    return ("POST /predict HTTP/1.1\r\n" + "\r\n".join(given) + "\r\n\r\n").encode()


def _sent(service: Service, *pieces: bytes) -> bytes:
    """Send *pieces*, as far as they are taken; return the status of the answer, empty where there was none."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        try:
            for piece in pieces:
                client.sendall(piece)
        except OSError:
            pass  # answered and closed before all was sent
        return _status(client)


def _status(client: socket.socket) -> bytes:
    try:
        return b"".join(client.recv(4096).split(b" ")[1:2])
    except OSError:
        return b""


def _slow_clients(tally: Tally, service: Service) -> None:
    head = _head(service, f"Content-Length: {len(BODY)}")
    # Half of them never end their headers, half never end their bodies.
    slow = [socket.create_connection(("127.0.0.1", service.port), timeout=30) for _ in range(_DAWDLERS)]
    for number, client in enumerate(slow):
        client.sendall(head[:40] if number % 2 else head + BODY[:100])
    worst = max(call(service.port, "GET", "/health").seconds for _ in range(50))
    tally.check(
        f"{_DAWDLERS} dawdling clients delay nobody",
        worst < 1,
        f"slowest of 50 /health {worst * 1000:.0f} ms",
    )
    statuses = [_status(client) for client in slow]
    for client in slow:
        client.close()
    told = statuses.count(b"408")
    tally.check("each of them gets 408", told == _DAWDLERS, f"{told} of {_DAWDLERS}")
