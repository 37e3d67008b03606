"""Attacks on `ml-api serve` over raw sockets, by callers with a key, without one, or with a weak one."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
from raw_http import Answer, head

from predictor import save

Start = Callable[..., contextlib.AbstractContextManager[Any]]

ADMIN = "the-admin-key-of-the-wire-tests"
ROW = [65800.0, 65500.0, 55.0, 40.0, 35.0, 5.0, 0.05, 0.001, 0.01, 0.008, 1.1]


def infer(wire: Any, *inputs: dict[str, Any], name: str = "btc-eth", lines: tuple[str, ...] = ()) -> Answer:
    content = json.dumps({"inputs": inputs}).encode()
    start = wire.post(f"Content-Length: {len(content)}", *lines, path=f"/v2/models/{name}/infer")
    return wire.ask(start + content)


# Whose key opens what


@pytest.fixture(scope="module")
def with_admin(start_wire: Start) -> Iterator[Any]:
    with start_wire(ML_SERVICE_ADMIN_KEY=ADMIN) as running:
        yield running


@pytest.mark.parametrize(
    "target",
    [
        "/admin/model",
        "//admin/model",
        "/admin//model",
        "/admin/model/",
        "/./admin/model",
        "/x/../admin/model",
        "/%61dmin/model",
        "/admin%2Fmodel",
        "/admin/model?x=/predict",
        "/admin/model;x",
        "/ADMIN/model",
        "http://service/admin/model",
    ],
)
def test_a_callers_key_opens_no_spelling_of_the_admin_path(with_admin: Any, target: str) -> None:
    content = b'{"path":"x.txt"}'
    answer = with_admin.ask(with_admin.post(f"Content-Length: {len(content)}", path=target) + content)
    assert answer.status in {401, 404, 405}
    asked = with_admin.ask(with_admin.post("Content-Length: 0", path="/admin/model", key=ADMIN))
    assert asked.status == 422  # the right key is read, and the empty body refused


def test_nor_does_it_behind_a_prefix_that_the_server_was_told_of(start_wire: Start) -> None:
    command = ("uvicorn", "--factory", "ml_api.app:create_app", "--root-path", "/ml")
    with start_wire(command=command, ML_SERVICE_ADMIN_KEY=ADMIN) as running:
        for path in ("/admin/model", "/ml/admin/model", "/ml/ml/admin/model"):
            refused = running.ask(running.post("Content-Length: 0", path=path))
            assert refused.status in {401, 404, 405}
        assert running.ask(running.post("Content-Length: 0", path="/admin/model", key=ADMIN)).status == 422
        assert running.ask(head("GET", "/health")).status == 200


def test_two_keys_in_one_request_open_nothing(with_admin: Any) -> None:
    for lines in (("X-API-Key: " + ADMIN,), ("x-api-key: " + with_admin.api_key,)):
        answer = with_admin.ask(with_admin.post("Content-Length: 0", *lines, path="/admin/model"))
        assert answer.status == 401


# The event loop stays free


@pytest.mark.parametrize("unit", [b"[],", b"0,"])
@pytest.mark.parametrize("path", ["/predict", "/v2/models/btc-eth/infer", "/v2/models/btc-eth/explain"])
def test_eight_bodies_of_a_mebibyte_leave_health_answered(wire: Any, path: str, unit: bytes) -> None:
    begin = b'{"inputs":[{"name":"rows","shape":[1,11],"datatype":"FP64","data":['
    content = begin + unit * ((1_000_000 - len(begin)) // len(unit)) + b"0]}]}"
    with contextlib.ExitStack() as opened:
        clients = []
        for number in range(8):
            lines = (f"Content-Length: {len(content)}", f"Idempotency-Key: heavy-{number}")
            client = opened.enter_context(wire.connect())
            clients.append(client.send(wire.post(*lines, path=path), content[:-1]))
        probe = opened.enter_context(wire.connect())
        for client in clients:
            client.send(content[-1:])  # all are whole at once
        # How long each may hold the loop is measured in CPU time, in services/ml-api/tests/http/test_event_loop.py.
        assert probe.send(head("GET", "/health")).answer().status == 200
        assert {client.answer().status for client in clients} == {422}


# What one caller may occupy


def test_a_caller_over_its_quota_is_told_so_and_others_go_on(start_wire: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("greedy = the-key-of-the-greedy\nmodest = the-key-of-the-modest\n")
    with start_wire(ML_SERVICE_QUOTA_BYTES="6000", ML_SERVICE_API_KEYS_FILE=str(keys)) as wire:

        def decide(key: str, number: int | None = None) -> Answer:
            lines = () if number is None else (f"Idempotency-Key: {key}-{number}",)
            return wire.ask(wire.post(f"Content-Length: {len(wire.body)}", *lines, key=key) + wire.body)

        greedy = [decide("the-key-of-the-greedy", number) for number in range(6)]
        refused = [answer for answer in greedy if answer.status == 429]
        assert greedy[0].status == 200
        assert refused
        assert {answer.problem for answer in refused} == {"answer-quota-used-up"}
        assert all(int(answer.header("retry-after") or 0) > 0 for answer in refused)
        assert decide("the-key-of-the-modest", 0).status == 200
        assert decide("the-key-of-the-greedy").status == 200  # unrecorded, it occupies nothing
        replayed = decide("the-key-of-the-greedy", 0)
        assert (replayed.status, replayed.header("idempotency-replayed")) == (200, "true")


def test_a_rate_limit_holds_for_a_name_over_all_its_connections_and_keys(
    start_wire: Start, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one = the-first-key-of-one\none = the-second-key-of-one\ntwo = the-only-key-of-two\n")
    with start_wire(ML_SERVICE_RATE_LIMIT="4", ML_SERVICE_API_KEYS_FILE=str(keys)) as wire:

        def status(key: str) -> int:
            start = wire.post("Content-Length: 2", key=key)
            return int(wire.ask(start + b"{}").status)

        asked = [status(f"the-{nth}-key-of-one") for nth in ("first", "second") * 4]
        assert 429 in asked
        assert status("the-only-key-of-two") == 422


# Keys that can be guessed


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"API_KEY": "b"}, "API_KEY"),
        ({"API_KEY": "aaaaaaaaaaaaaaaaaaaa"}, "API_KEY"),
        ({"API_KEY": "the-key-of-a-caller", "ADMIN_KEY": "a"}, "ADMIN_KEY"),
        ({"API_KEY": "the-key-of-a-caller", "ADMIN_KEY": "the-key-of-a-caller"}, "ADMIN_KEY"),
        ({"API_KEY": " \t "}, "API_KEY"),
    ],
)
def test_a_key_that_can_be_guessed_starts_no_service(
    variables: dict[str, str], named: str, tmp_path: Path
) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ML_SERVICE_")}
    given = {f"ML_SERVICE_{name}": value for name, value in variables.items()}
    done = subprocess.run(
        [sys.executable, "-m", "ml_api", "serve", "--port", "0"],
        env=inherited | given,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert f"ML_SERVICE_{named}:" in done.stderr
    assert not any(f" {value}\n" in done.stderr for value in variables.values() if value.strip())


def test_wrong_keys_are_counted_and_slowed_and_the_right_one_is_not(start_wire: Start) -> None:
    with start_wire() as wire:
        for number in range(25):
            start = wire.post("Content-Length: 2", key=f"wrong-key-number-{number}")
            assert wire.ask(start + b"{}").status == 401
        assert wire.metric("ml_service_unauthorized_total") == 25
        assert wire.metric("ml_service_authentication_slowed_total") > 0
        assert wire.ask(wire.predict()).status == 200


# One policy for every door of /v2


@pytest.mark.parametrize("value", [" 1_20 ", "120", True, 2**53 + 1, {}])
def test_a_value_that_columns_refuse_the_matrix_refuses_too(wire: Any, value: object) -> None:
    row = [*ROW[:-1], value]
    names = json.loads(wire.ask(head("GET", "/v2/models/btc-eth", f"X-API-Key: {wire.api_key}")).body)
    matrix = {"name": "rows", "shape": [1, 11], "datatype": "FP64", "data": row}
    columns = [
        {"name": feature["name"], "shape": [1], "datatype": "FP64", "data": [cell]}
        for feature, cell in zip(names["features"], row, strict=True)
    ]
    assert infer(wire, matrix).status == 422
    assert infer(wire, *columns).status == 422


def test_a_row_that_overflows_costs_the_others_nothing(start_wire: Start, tmp_path: Path) -> None:
    sample = np.linspace(-1, 1, 200).reshape(-1, 1)
    estimator = lightgbm.LGBMRegressor(n_estimators=2, linear_tree=True, verbose=-1)
    estimator.fit(sample, 1e30 * sample[:, 0])
    save(estimator, tmp_path / "steep.txt", sample=sample, name="steep", version="1")
    with start_wire(ML_SERVICE_MODELS_DIR=str(tmp_path)) as wire:
        rows = {"name": "rows", "shape": [2, 1], "datatype": "FP64", "data": [0.5, 1e300]}
        output = json.loads(infer(wire, rows, name="steep").body)["outputs"][0]
        assert output["data"][0] == estimator.predict(np.array([[0.5]]))[0]
        assert output["data"][1] is None
        assert output["parameters"]["non_finite_rows"] == "1"
        alone = infer(wire, rows | {"shape": [1, 1], "data": [1e300]}, name="steep")
        assert (alone.status, alone.problem) == (422, "prediction-not-finite")
        assert wire.ask(head("GET", "/health")).status == 200
