"""
Each quickstart does what its head comment says, in an environment that has the wheel, the framework and nothing else.

These tests make environments from the package index, or from uv's cache, so the ordinary suite leaves them out;
`.ci/run` has a step for them: `pytest -m fresh_environment`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from patience import until_sync
from ports import free_port

pytestmark = [pytest.mark.fresh_environment, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[4]
QUICKSTARTS = ROOT / "examples" / "quickstart"
NAMES = sorted(path.stem.removesuffix("_app") for path in QUICKSTARTS.glob("*_app.py"))
LOWEST_FASTAPI = ["fastapi==0.115.*"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    _run(
        [_uv(), "build", "--quiet", "--wheel", "--package", "asgi-idempotency", "--out-dir", str(out)],
        cwd=ROOT,
    )
    return next(out.glob("*.whl"))


@dataclass
class Commands:
    """The commands that the head comment of a quickstart gives."""

    install: list[str]
    serve: list[str]
    curls: list[list[str]]

    @classmethod
    def of(cls, source: Path) -> Commands:
        comment = source.read_text().partition('"""')[2].partition('"""')[0]
        indented = "\n".join(line for line in comment.splitlines() if line.startswith("    "))
        lines = textwrap.dedent(indented).replace("\\\n", " ").splitlines()
        install, enter, serve, *curls = [shlex.split(line) for line in lines]
        assert enter == ["cd", "examples/quickstart"]
        assert [install[:2], *(curl[:2] for curl in curls)] == [["pip", "install"], *[["curl", "-i"]] * 2]
        return cls(install[2:], serve, curls)


def test_there_is_a_quickstart_for_each_framework() -> None:
    assert NAMES == ["django", "drf", "fastapi", "flask", "litestar", "quart", "starlette"]


@pytest.mark.parametrize("name", [*NAMES, "fastapi-lowest"])
def test_a_quickstart_does_what_its_head_comment_says_with_nothing_else_installed(
    name: str, wheel: Path, tmp_path: Path
) -> None:
    source = QUICKSTARTS / f"{name.removesuffix('-lowest')}_app.py"
    commands = Commands.of(source)
    here = tmp_path / "here"
    here.mkdir()
    shutil.copy(source, here)
    programs = _make_environment(
        tmp_path / "venv", commands.install, wheel, LOWEST_FASTAPI if name.endswith("-lowest") else []
    )
    first_curl, second_curl = commands.curls
    with _serving(commands.serve, programs, here) as port:
        first, again = _curl(first_curl, port), _curl(second_curl, port)
        assert (first.status, json.loads(first.body)) == (201, {"charge": 1})
        assert "idempotency-replayed" not in first.headers
        assert (again.status, again.body) == (201, first.body)
        assert again.headers["idempotency-replayed"] == "true"

        other_key = _curl([word.replace("order-1", "order-2") for word in first_curl], port)
        assert (other_key.status, json.loads(other_key.body)) == (201, {"charge": 2})
        stranger = _curl([word.replace("alice-1", "nobody") for word in first_curl], port)
        assert stranger.status in {401, 403}
        assert b"charge" not in stranger.body
        other_body = _curl([word.replace("500", "501") for word in first_curl], port)
        assert (other_body.status, other_body.headers["content-type"]) == (422, "application/problem+json")
    with _serving(commands.serve, programs, here) as port:  # the records are in a file
        kept = _curl(second_curl, port)
        assert (kept.status, kept.body, kept.headers["idempotency-replayed"]) == (201, first.body, "true")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def _make_environment(place: Path, packages: Sequence[str], wheel: Path, pinned: Sequence[str]) -> Path:
    """An environment with *packages*, in which the wheel stands for the source; its programs."""
    _run([_uv(), "venv", "--quiet", "--no-project", str(place)])
    wanted = [package.replace("./packages/idempotency", str(wheel)) for package in packages]
    _run([_uv(), "pip", "install", "--quiet", "--python", str(place / "bin" / "python"), *wanted, *pinned])
    return place / "bin"


@contextmanager
def _serving(command: Sequence[str], programs: Path, directory: Path) -> Iterator[int]:
    """Runs *command*'s server on a free port and gives the port."""
    port = free_port()
    program, *arguments = [word.replace("8000", str(port)) for word in command]
    environment = {"PATH": f"{programs}:{os.defpath}", "HOME": str(directory), "PYTHONUNBUFFERED": "1"}
    with (directory / "log").open("ab") as log:
        server = subprocess.Popen(
            [str(programs / program), *arguments],
            cwd=directory,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_for(port, server, directory / "log")
        yield port
    finally:
        os.killpg(server.pid, 15)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, 9)
            server.wait()
    output = (directory / "log").read_text()
    assert "Traceback" not in output, output


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    def listens() -> bool:
        assert server.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    until_sync(listens, f"the server starts; {log} has what it says", patience=60.0)


def _curl(command: Sequence[str], port: int) -> Answer:
    program = shutil.which("curl")
    assert program, "these tests type the curl commands of the quickstarts; install curl"
    done = subprocess.run(
        [program, "-sS", "--max-time", "60", *(word.replace(":8000", f":{port}") for word in command[1:])],
        capture_output=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    status, *fields = head.decode("latin-1").split("\r\n")
    matched = re.match(r"HTTP/1\.1 (\d{3})", status)
    assert matched, status
    headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    return Answer(int(matched[1]), headers, body)


def _uv() -> str:
    uv = shutil.which("uv")
    assert uv, "these tests make environments by uv; `pip install uv`"
    return uv


def _run(command: Sequence[str], cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
