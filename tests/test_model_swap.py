"""A model swap with several real workers: all or none swap, and a later worker serves the new model."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from ml_api.serving.registry import BUNDLED_MODEL
from predictor import Manifest, manifest_path

WORKERS = 2
ADMIN = "the-admin-key-of-the-system-tests"

Swap = Callable[..., httpx.Response]


def model_of(tmp_path: Path, version: str, **changes: Any) -> Path:
    """A copy of the bundled model with another version and *changes* to its manifest."""
    model = tmp_path / f"model-{version}.txt"
    shutil.copy(BUNDLED_MODEL, model)
    manifest = Manifest.read(manifest_path(BUNDLED_MODEL))
    manifest.model_copy(update={"version": version} | changes).write(manifest_path(model))
    return model


@pytest.fixture
def service(serve: Callable[..., Any], eventually: Callable[..., None], tmp_path: Path) -> Any:
    service = serve(workers=WORKERS, ML_SERVICE_ADMIN_KEY=ADMIN, ML_SERVICE_ADMIN_MODEL_DIR=str(tmp_path))
    eventually(
        lambda: service.log.count("Application startup complete") == WORKERS, "all workers have started"
    )
    return service


@pytest.fixture
def swap(service: Any) -> Swap:
    def to(path: Path, key: str = ADMIN, **more: str) -> httpx.Response:
        return service.client.post(
            "/admin/model", json={"path": str(path)} | more, headers={"X-API-Key": key}
        )

    return to


def versions(service: Any) -> set[str]:
    """The model versions that new connections, spread over the workers, report."""
    with ThreadPoolExecutor(8) as pool:
        url = f"http://127.0.0.1:{service.port}/health"
        # `verify=False`: otherwise each client would load the certificates of the machine, which are not needed.
        answers = pool.map(lambda _: httpx.get(url, verify=False), range(40))
        return {answer.json()["modelVersion"] for answer in answers}


def test_a_swap_reaches_every_worker_and_the_answer_lists_them(
    service: Any, swap: Swap, tmp_path: Path, body: Callable[..., bytes]
) -> None:
    answer = swap(model_of(tmp_path, "1.1.0"))
    assert answer.status_code == 200, answer.text
    assert (answer.json()["model"], answer.json()["version"]) == ("btc-eth", "1.1.0")
    assert [worker["version"] for worker in answer.json()["workers"]] == ["1.1.0"] * WORKERS
    assert len({worker["pid"] for worker in answer.json()["workers"]}) == WORKERS
    assert versions(service) == {"1.1.0"}
    assert service.predict(body()).json()["modelVersion"] == "1.1.0"
    assert service.metric('ml_service_model_workers{model="btc-eth",version="1.1.0"}') == WORKERS
    assert service.metric('ml_service_model_workers{model="btc-eth",version="1.0.0"}') == 0.0


def test_a_restarted_worker_serves_the_new_model_without_its_file(
    service: Any, swap: Swap, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    model = model_of(tmp_path, "1.1.0")
    workers = swap(model).json()["workers"]
    model.unlink()
    os.kill(workers[0]["pid"], signal.SIGKILL)
    # A later swap reaches all workers again, one of them new.
    later = model_of(tmp_path, "1.2.0")

    def all_again() -> bool:
        try:
            assert versions(service) <= {"1.1.0", "1.2.0"}
            return len(swap(later).json()["workers"]) == WORKERS
        except httpx.TransportError:
            return False  # a connection of the killed worker

    eventually(all_again, "all workers again")
    assert versions(service) == {"1.2.0"}
    assert service.metric('ml_service_model_workers{model="btc-eth",version="1.2.0"}') == WORKERS


def test_an_unsuitable_model_changes_no_worker(service: Any, swap: Swap, tmp_path: Path) -> None:
    altered = model_of(tmp_path, "1.1.0")
    altered.write_bytes(altered.read_bytes().replace(b"1", b"2", 1))
    other_name = model_of(tmp_path, "1.1.1", name="houses")
    wrong_digest = model_of(tmp_path, "1.1.2")
    golden = Manifest.read(manifest_path(BUNDLED_MODEL)).golden
    wrong_row = golden[0].model_copy(update={"raw": tuple(value + 1 for value in golden[0].raw)})
    other_numbers = model_of(tmp_path, "1.1.3", golden=(wrong_row,))
    answers = [
        swap(altered),
        swap(other_name),
        swap(wrong_digest, sha256="0" * 64),
        swap(other_numbers),
        swap(tmp_path / "absent.txt"),
        swap(wrong_digest, model="unknown"),
    ]
    assert {answer.status_code for answer in answers} == {422}
    assert all(answer.json()["detail"].startswith("Nothing changed: ") for answer in answers)
    assert versions(service) == {"1.0.0"}


def test_the_swap_route_accepts_only_the_admin_key(service: Any, swap: Swap, tmp_path: Path) -> None:
    model = model_of(tmp_path, "1.1.0")
    assert swap(model, key=service.client.headers["x-api-key"]).status_code == 401
    assert service.client.post("/predict", headers={"X-API-Key": ADMIN}).status_code == 401
    assert service.client.get("/admin/model", headers={"X-API-Key": ADMIN}).status_code == 405
    assert versions(service) == {"1.0.0"}


def test_the_swap_route_does_not_exist_without_an_admin_key(serve: Callable[..., Any]) -> None:
    assert serve().client.post("/admin/model", json={"path": "/x"}).status_code == 404
