"""Attacks on `ml-api serve` over raw sockets: keys, expensive bodies, quotas, rates and invalid values."""

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


# Keys and routes


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
def test_a_caller_key_is_refused_for_every_spelling_of_the_admin_path(with_admin: Any, target: str) -> None:
    content = b'{"path":"x.txt"}'
    answer = with_admin.ask(with_admin.post(f"Content-Length: {len(content)}", path=target) + content)
    assert answer.status in {401, 404, 405}
    asked = with_admin.ask(with_admin.post("Content-Length: 0", path="/admin/model", key=ADMIN))
    assert asked.status == 422  # the admin key is accepted, and the empty body refused


def test_a_caller_key_is_refused_for_the_admin_path_under_a_root_path(start_wire: Start) -> None:
    command = ("uvicorn", "--factory", "ml_api.app:create_app", "--root-path", "/ml")
    with start_wire(command=command, ML_SERVICE_ADMIN_KEY=ADMIN) as running:
        for path in ("/admin/model", "/ml/admin/model", "/ml/ml/admin/model"):
            refused = running.ask(running.post("Content-Length: 0", path=path))
            assert refused.status in {401, 404, 405}
        assert running.ask(running.post("Content-Length: 0", path="/admin/model", key=ADMIN)).status == 422
        assert running.ask(head("GET", "/health")).status == 200


def test_a_request_with_two_api_keys_is_401(with_admin: Any) -> None:
    for lines in (("X-API-Key: " + ADMIN,), ("x-api-key: " + with_admin.api_key,)):
        answer = with_admin.ask(with_admin.post("Content-Length: 0", *lines, path="/admin/model"))
        assert answer.status == 401


# Expensive bodies


@pytest.mark.parametrize("unit", [b"[],", b"0,"])
@pytest.mark.parametrize("path", ["/predict", "/v2/models/btc-eth/infer", "/v2/models/btc-eth/explain"])
def test_health_answers_during_eight_bodies_of_a_megabyte(wire: Any, path: str, unit: bytes) -> None:
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
            client.send(content[-1:])  # all bodies are complete at about the same time
        # services/ml-api/tests/http/test_event_loop.py measures how long each body blocks the loop.
        assert probe.send(head("GET", "/health")).answer().status == 200
        assert {client.answer().status for client in clients} == {422}


# Quotas and rates per caller


def test_only_the_caller_over_its_quota_is_429(start_wire: Start, tmp_path: Path) -> None:
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
        assert decide("the-key-of-the-greedy").status == 200  # not recorded without a key
        replayed = decide("the-key-of-the-greedy", 0)
        assert (replayed.status, replayed.header("idempotency-replayed")) == (200, "true")


def test_the_rate_limit_applies_per_caller_name_across_keys_and_connections(
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


# Weak and wrong keys


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
def test_the_service_does_not_start_with_a_weak_key(
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


def test_wrong_keys_are_counted_and_delayed_and_a_valid_key_is_accepted(start_wire: Start) -> None:
    with start_wire() as wire:
        for number in range(25):
            start = wire.post("Content-Length: 2", key=f"wrong-key-number-{number}")
            assert wire.ask(start + b"{}").status == 401
        assert wire.metric("ml_service_unauthorized_total") == 25
        assert wire.metric("ml_service_authentication_slowed_total") > 0
        assert wire.ask(wire.predict()).status == 200


# The same policy for all forms of /v2 requests


@pytest.mark.parametrize("value", [" 1_20 ", "120", True, 2**53 + 1, {}])
def test_an_invalid_value_is_422_as_matrix_and_as_columns(wire: Any, value: object) -> None:
    row = [*ROW[:-1], value]
    names = json.loads(wire.ask(head("GET", "/v2/models/btc-eth", f"X-API-Key: {wire.api_key}")).body)
    matrix = {"name": "rows", "shape": [1, 11], "datatype": "FP64", "data": row}
    columns = [
        {"name": feature["name"], "shape": [1], "datatype": "FP64", "data": [cell]}
        for feature, cell in zip(names["features"], row, strict=True)
    ]
    assert infer(wire, matrix).status == 422
    assert infer(wire, *columns).status == 422


@pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")  # of LightGBM 4.6
def test_an_overflowing_row_does_not_affect_the_other_rows(start_wire: Start, tmp_path: Path) -> None:
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
