"""A real MariaDB server for tests, from Debian's package mariadb-server."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import pymysql
from patience import until_sync
from ports import free_port

__all__ = ["find_mariadb", "socket_of", "start_mariadb"]


def find_mariadb() -> str | None:
    """The server's binary."""
    return shutil.which("mariadbd", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


@contextmanager
def start_mariadb(binary: str) -> Iterator[str]:
    """A server of its own on a free port of the loopback: `user:password@host:port/database`."""
    with TemporaryDirectory(prefix="mariadb-", ignore_cleanup_errors=True) as directory:
        data, log = Path(directory, "data"), Path(directory, "log")
        port = free_port()
        common = [f"--datadir={data}", "--user=root"]
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", *common, "--auth-root-authentication-method=normal"],
            check=True,
            capture_output=True,
        )
        with log.open("wb") as output:
            server = subprocess.Popen(
                [
                    binary,
                    "--no-defaults",
                    *common,
                    f"--port={port}",
                    "--bind-address=127.0.0.1",
                    f"--socket={directory}/socket",
                    "--innodb-flush-log-at-trx-commit=2",
                    "--innodb-lock-wait-timeout=5",
                ],
                stdout=output,
                stderr=output,
            )
        try:
            _set_up(Path(directory, "socket"), server, log)
            yield f"tests:secret@127.0.0.1:{port}/tests"
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(30)
            server.kill()
            server.wait()


def socket_of(url: str) -> Path:
    """The socket on which the server of *url* listens too."""
    given = urlsplit(f"//{url}")
    with (
        pymysql.connect(
            host=given.hostname, port=given.port or 3306, user=given.username, password=given.password or ""
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT @@socket")
        (path,) = cursor.fetchone() or ("",)
    return Path(path)


def _set_up(path: Path, server: subprocess.Popen[bytes], log: Path) -> None:
    def is_up() -> bool:
        if server.poll() is not None:
            raise RuntimeError(f"MariaDB did not start: {log.read_text()[-2000:]}")
        return _listens(path)

    until_sync(is_up, f"MariaDB listens at {path}", patience=90.0)
    connection = pymysql.connect(unix_socket=str(path), user="root")
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE tests")
        for host in ("127.0.0.1", "localhost"):
            cursor.execute(f"CREATE USER tests@'{host}' IDENTIFIED BY 'secret'")
            cursor.execute(f"GRANT ALL ON *.* TO tests@'{host}'")


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
