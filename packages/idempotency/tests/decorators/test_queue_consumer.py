"""The example of a queue consumer, run as a user would, and killed before its record or its acknowledgement."""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from idempotency.stores.sqlite import SyncSQLiteStore
from idempotency.testing import FakeClock

EXAMPLE = Path(__file__).parents[4] / "examples" / "queue_consumer.py"

KILLED_AT_THE_ACKNOWLEDGEMENT = """
import os, runpy, sys
from pathlib import Path
Path.unlink = lambda *args, **kwargs: os._exit(9)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("queue_consumer", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["queue_consumer"] = module  # its dataclass resolves annotations there
    spec.loader.exec_module(module)
    return module


def run(*arguments: object) -> str:
    command = [sys.executable, str(EXAMPLE), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_message_delivered_twice_is_charged_once(tmp_path: Path, example: ModuleType) -> None:
    message = json.dumps({"order": "o-1", "cents": 500})
    for _ in range(2):
        run(tmp_path, "--send", message)
    assert run(tmp_path) == "charged: order o-1, 500 cents\n" * 2
    assert example.Account(tmp_path / "account.db").charges() == [("o-1", 500)]
    assert list(tmp_path.glob("*.json")) == []


def test_consumer_killed_before_its_acknowledgement_charges_once(tmp_path: Path, example: ModuleType) -> None:
    run(tmp_path, "--send", json.dumps({"order": "o-1", "cents": 500}))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT_THE_ACKNOWLEDGEMENT, str(EXAMPLE), str(tmp_path)],
        check=False,
        timeout=60,
    )
    assert killed.returncode == 9
    assert len(list(tmp_path.glob("*.json"))) == 1
    assert run(tmp_path) == "charged: order o-1, 500 cents\n"
    assert example.Account(tmp_path / "account.db").charges() == [("o-1", 500)]


def test_consumer_killed_before_its_record_is_taken_over_and_charges_once(
    tmp_path: Path, example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    monkeypatch.setattr(example, "SyncSQLiteStore", functools.partial(SyncSQLiteStore, clock=clock))
    example.send(tmp_path, json.dumps({"order": "o-1", "cents": 500}))

    def die(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SyncSQLiteStore, "complete", die)
        with pytest.raises(KeyboardInterrupt):
            list(example.consume(tmp_path))
    assert [line[:6] for line in example.consume(tmp_path)] == ["later:"]
    clock.advance(11)
    assert list(example.consume(tmp_path)) == ["charged: order o-1, 500 cents"]
    assert example.Account(tmp_path / "account.db").charges() == [("o-1", 500)]


@pytest.mark.parametrize(
    "message",
    ["no JSON", "[1]", '{"order": "o-1"}', '{"order": " ", "cents": 1}', '{"order": "o-1", "cents": 0}'],
)
def test_invalid_message_becomes_a_dead_letter(tmp_path: Path, example: ModuleType, message: str) -> None:
    example.send(tmp_path, message)
    (line,) = example.consume(tmp_path)
    assert line.startswith("dead letter: ")
    assert len(list(tmp_path.glob("*.dead"))) == 1
    assert example.Account(tmp_path / "account.db").charges() == []


def test_second_amount_for_an_order_becomes_a_dead_letter(tmp_path: Path, example: ModuleType) -> None:
    for cents in (500, 700):
        example.send(tmp_path, json.dumps({"order": "o-1", "cents": cents}))
        lines = list(example.consume(tmp_path))
    assert lines[0].startswith("dead letter: idempotency key")
    assert example.Account(tmp_path / "account.db").charges() == [("o-1", 500)]
