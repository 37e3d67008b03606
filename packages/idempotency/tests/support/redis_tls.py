"""A TLS proxy in front of a server without TLS, with certificates made by the test: the handshake is verified."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["Authority", "TlsProxy", "start_tls_proxy"]


class Authority:
    """
    Signs certificates.

    Attributes:
        certificate: The path of its own certificate, for clients that trust it.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # to sign others
        builder = (
            _builder(self._name, self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .add_extension(usage, critical=True)
        )
        signed = builder.sign(self._key, hashes.SHA256())
        self.certificate = directory / f"{name}.pem"
        self.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def sign(self, host: str) -> Path:
        """A certificate for *host*, an address or a name, in one file with its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            name: x509.GeneralName = x509.IPAddress(ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            _builder(subject, self._name, key)
            .add_extension(x509.SubjectAlternativeName([name]), critical=False)
            .add_extension(authority, critical=False)
        )
        signed = builder.sign(self._key, hashes.SHA256())
        path = self._directory / f"{host}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + signed.public_bytes(serialization.Encoding.PEM)
        )
        return path


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
    )


class TlsProxy:
    """
    A TLS proxy of one server.

    Attributes:
        port: To connect to on the loopback.
        handshakes: How many connections completed the TLS handshake.
    """

    def __init__(self, upstream: int, certificate: Path) -> None:
        self.port = 0
        self.handshakes = 0
        self._upstream = upstream
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)

    def run(self, started: Callable[[], None]) -> None:
        asyncio.run(self._serve(started))

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)

    async def _serve(self, started: Callable[[], None]) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        # A client that rejects the certificate is expected here: not an error of this loop.
        self._loop.set_exception_handler(lambda *_: None)
        self._clients: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._client, "127.0.0.1", 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        started()
        await self._stopped.wait()
        server.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.handshakes += 1
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        upstream, to_upstream = await asyncio.open_connection("127.0.0.1", self._upstream)
        try:
            pumps = [
                asyncio.ensure_future(_pass(reader, to_upstream)),
                asyncio.ensure_future(_pass(upstream, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            writer.transport.abort()
            to_upstream.transport.abort()
            self._clients.discard(task)


async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()


@contextmanager
def start_tls_proxy(upstream: int, certificate: Path) -> Iterator[TlsProxy]:
    """TLS with *certificate* in front of port *upstream* of the loopback."""
    proxy = TlsProxy(upstream, certificate)
    started = threading.Event()
    thread = threading.Thread(target=proxy.run, args=(started.set,), name="tls-proxy")
    thread.start()
    assert started.wait(60)
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(30)
