"""A real PgBouncer in transaction mode, in front of a PostgreSQL that is there already."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
from patience import until_sync
from psycopg.conninfo import conninfo_to_dict, make_conninfo

__all__ = ["find_pgbouncer", "start_pgbouncer"]

SERVERS = 3
"""Connections to the server that all clients share: few, so that hardly a call meets the one of the call before."""


def find_pgbouncer() -> str | None:
    """The program, or None; Debian keeps it where only root looks."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


@contextmanager
def start_pgbouncer(binary: str, url: str) -> Iterator[str]:
    """Run *binary* in front of the server at *url*, on a socket of its own: the connection string of its clients."""
    server = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    with TemporaryDirectory(prefix="pgbouncer-") as made:
        directory = Path(made)
        user = pwd.getpwuid(os.getuid())
        if user.pw_uid == 0:  # it refuses to be root, and a server started by root lets in its own user alone
            socket = Path(server.get("host", ""))
            user = pwd.getpwuid(socket.stat().st_uid) if socket.is_absolute() else pwd.getpwnam("nobody")
            os.chown(directory, user.pw_uid, user.pw_gid)
        target = " ".join(
            f"{name}='{server[name]}'"
            for name in ("host", "port", "dbname", "user", "password")
            if server.get(name)
        )
        settings = directory / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\npooled = {target}\n[pgbouncer]\nlisten_addr =\nlisten_port = 6432\n"
            f"unix_socket_dir = {directory}\nauth_type = any\npool_mode = transaction\n"
            f"default_pool_size = {SERVERS}\nlogfile = {directory}/log\n"
        )
        settings.chmod(0o644)
        process = subprocess.Popen(
            [binary, "-q", "-u", user.pw_name, str(settings)], stderr=subprocess.DEVNULL
        )
        try:
            pooled = make_conninfo(host=made, port=6432, dbname="pooled", user="anybody")
            _wait_for(pooled, process)
            yield pooled
        finally:
            process.terminate()
            process.wait(30)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    def is_up() -> bool:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            if process.poll() is not None:
                raise
            return False
        return True

    until_sync(is_up, "PgBouncer takes connections", patience=60.0)
