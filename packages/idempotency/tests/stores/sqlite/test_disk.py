"""
The disk below a SQLite store, really full and really read-only.

As root on Linux, it is a small file system mounted in a name space of its own. Each scenario runs in its own process,
since its limits would outlive a test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

linux = pytest.mark.skipif(sys.platform != "linux", reason="the mounts and limits of Linux")

_PRELUDE = """
    import os, resource, signal, subprocess, sys
    from pathlib import Path
    from idempotency import Acquired, Completed, Fingerprint, Owner, StorageKey
    from idempotency.errors import StoreUnavailable
    from idempotency.stores.sqlite import SyncSQLiteStore

    directory = Path(sys.argv[1])
    store = SyncSQLiteStore(directory / "records.db")

    def acquire(number):
        request = dict(fingerprint=Fingerprint(b"f" * 32), lease=30.0, retention=60.0)
        return store.acquire(StorageKey(f"k{number}"), owner=Owner(os.urandom(16)), **request)

    def error_of(call):
        try:
            call()
        except StoreUnavailable as error:
            return str(error)
        raise AssertionError("it was not error_of")

    def fill():
        # Claims and completes until the store refuses, and returns the error; acknowledged outcomes must be there.
        claims = []

        def another():
            claims.append(acquire(len(claims)).claim)
            assert store.complete(claims[-1], b"x" * 20_000, retention=60.0)

        advice = error_of(lambda: [another() for _ in range(1_000)])
        for number in range(len(claims) - 1):
            assert isinstance(acquire(number), Completed), number
        return advice
"""
MOUNT = "mount -t tmpfs"


def run(tmp_path: Path, program: str, *, setup: str = "") -> None:
    """Run a program on *tmp_path*; with *setup*, as root in a mount name space in which that command ran first."""
    command = [sys.executable, "-c", textwrap.dedent(_PRELUDE) + textwrap.dedent(program), str(tmp_path)]
    if setup:
        command = ["unshare", "--mount", "sh", "-ec", f'{setup}\nexec "$@"', "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def may_mount() -> bool:
    """Whether a file system can be mounted in a name space of our own."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    tried = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    return tried.returncode == 0


@linux
def test_a_full_disk_refuses_claims_loses_nothing_and_the_store_recovers(tmp_path: Path) -> None:
    if not may_mount():
        pytest.skip("only root can mount a disk that is full")
    program = """
    assert "disk is full" in fill()
    os.unlink(directory / "ballast")
    assert isinstance(acquire(10_000), Acquired), "there is room again"
    """
    run(
        tmp_path,
        program,
        setup=f"{MOUNT} -o size=1m none {tmp_path}; head -c 65536 /dev/zero > {tmp_path}/ballast",
    )


@linux
def test_a_file_size_limit_refuses_claims_loses_nothing_and_the_store_recovers(tmp_path: Path) -> None:
    program = """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_048_576, resource.RLIM_INFINITY))
    fill()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert isinstance(acquire(10_000), Acquired), "there is room again"
    """
    run(tmp_path, program)


@linux
def test_a_read_only_disk_is_refused_when_the_store_is_opened(tmp_path: Path) -> None:
    program = """
    claim = acquire(1).claim
    store.close()
    {freeze}
    advice = error_of(lambda: SyncSQLiteStore(directory / "records.db").get(StorageKey("k1")))
    assert "read-only" in advice or "opened" in advice, advice
    {thaw}
    store = SyncSQLiteStore(directory / "records.db")
    assert store.complete(claim, b"{{}}", retention=60.0)
    """
    if may_mount():
        setup = f"{MOUNT} -o size=4m none {tmp_path}"
        change = 'subprocess.run(["mount", "-o", "remount,{}", str(directory)], check=True)'
        freeze, thaw = change.format("ro"), change.format("rw")
    else:
        setup = ""
        change = "[path.chmod({}) for path in (directory, *directory.iterdir())]"
        freeze, thaw = change.format("0o555"), change.format("0o755")
    run(tmp_path, program.format(freeze=freeze, thaw=thaw), setup=setup)
