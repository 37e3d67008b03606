"""POST /admin/model reads only regular files of one directory, reveals nothing of them, and delays no shutdown."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import lightgbm
import numpy as np
import psutil
import pytest

from ml_api.serving.registry import BUNDLED_MODEL
from predictor import Manifest, manifest_path, write_manifest

ADMIN = "the-admin-key-of-the-system-tests"
MANIFEST = ".manifest.json"


def copy_of(directory: Path, name: str, **changes: Any) -> Path:
    """A copy of the bundled model with *changes* to its manifest."""
    path = directory / name
    shutil.copy(BUNDLED_MODEL, path)
    manifest = Manifest.read(manifest_path(BUNDLED_MODEL))
    manifest.model_copy(update=changes).write(manifest_path(path))
    return path


def houses(path: Path, features: list[str], outputs: int = 1) -> None:
    """Write a small model, trained on *features* in this order."""
    random = np.random.default_rng(7)
    values = {name: random.normal(size=300) for name in sorted(features)}
    rows = np.column_stack([values[name] for name in features])
    truth = values["size"] + 2 * values["age"]
    objective: dict[str, Any] = {"objective": "regression"}
    if outputs > 1:
        truth, objective = np.digitize(truth, [-1, 1]), {"objective": "multiclass", "num_class": outputs}
    data = lightgbm.Dataset(rows, truth, feature_name=features)
    lightgbm.train(objective | {"verbose": -1, "num_leaves": 5}, data, 5).save_model(path)
    samples = [dict(zip(features, row, strict=True)) for row in rows.tolist()]
    write_manifest(path, samples, name="houses", version=f"{'-'.join(features)}-{outputs}")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    directory = tmp_path / "models"
    directory.mkdir()
    return directory


@pytest.fixture
def service(serve: Callable[..., Any], models: Path, tmp_path: Path) -> Any:
    served = tmp_path / "served"
    served.mkdir()
    houses(served / "houses.txt", ["size", "age"])
    return serve(
        ML_SERVICE_ADMIN_KEY=ADMIN,
        ML_SERVICE_ADMIN_MODEL_DIR=str(models),
        ML_SERVICE_MODELS_DIR=str(served),
        ML_SERVICE_MAX_MODEL_BYTES="3000000",
        ML_SERVICE_SHUTDOWN_TIMEOUT="5",
    )


def swap(service: Any, path: str | Path, **more: Any) -> httpx.Response:
    return service.client.post("/admin/model", json={"path": str(path)} | more, headers={"X-API-Key": ADMIN})


def test_admin_model_reads_only_regular_files_of_its_directory_and_reveals_nothing(
    service: Any, models: Path, tmp_path: Path
) -> None:
    outside = copy_of(tmp_path, "outside.txt")
    secret = tmp_path / "secret.txt"
    secret.write_text("root:x:0:0:SECRET\n")
    shutil.copy(manifest_path(BUNDLED_MODEL), manifest_path(secret))
    os.mkfifo(models / "fifo.txt")
    (models / "directory.txt").mkdir()
    (models / "link.txt").symlink_to(outside)
    (models / "device.txt").symlink_to("/dev/zero")
    (models / "loop.txt").symlink_to(models / "loop.txt")
    with (models / "sparse.txt").open("wb") as sparse:
        sparse.truncate(1 << 40)
    for name in ("fifo", "directory", "link", "device", "sparse"):
        shutil.copy(manifest_path(BUNDLED_MODEL), models / f"{name}.txt{MANIFEST}")
    for name, kind in (("m-fifo", "fifo"), ("m-link", "link"), ("m-sparse", "sparse")):
        shutil.copy(BUNDLED_MODEL, models / f"{name}.txt")
        manifest = models / f"{name}.txt{MANIFEST}"
        if kind == "fifo":
            os.mkfifo(manifest)
        elif kind == "link":
            manifest.symlink_to(manifest_path(outside))
        else:
            with manifest.open("wb") as file:
                file.truncate(1 << 40)
    (models / "secret.txt").write_text("root:x:0:0:SECRET\n")
    shutil.copy(manifest_path(BUNDLED_MODEL), models / f"secret.txt{MANIFEST}")
    copy_of(models, "text.txt")
    (models / f"text.txt{MANIFEST}").write_text('{"name": "SECRET"')
    before = psutil.Process(service.process.pid).memory_info().rss
    paths = [
        outside,
        secret,
        "../outside.txt",
        f"{models}/../outside.txt",
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/environ",
        "/proc/self/mem",
        "/etc/passwd",
        *(f"{name}.txt" for name in ("fifo", "directory", "link", "device", "loop", "sparse")),
        *(f"{name}.txt" for name in ("m-fifo", "m-link", "m-sparse", "secret", "text")),
        "\0",
        "x\0.txt",
        ".",
        "/",
        "a" * 4096,
        "\N{SNOWMAN}" * 300,
        "\n",
    ]
    begun = time.monotonic()
    for path in paths:
        answer = swap(service, path)
        assert answer.status_code == 422, (path, answer.text)
        assert answer.json()["type"].endswith("model-refused"), path
        assert "SECRET" not in answer.text
    assert time.monotonic() - begun < 60
    assert psutil.Process(service.process.pid).memory_info().rss - before < 100_000_000
    assert swap(service, "a" * 4097).status_code == 422
    wrong = swap(service, copy_of(models, "good.txt", version="1.1.0").name, sha256="0" * 64)
    assert wrong.status_code == 422
    digest = Manifest.read(manifest_path(BUNDLED_MODEL)).sha256
    assert not any(digest[start : start + 8] in wrong.text for start in range(57))
    audit = [json.loads(line) for line in service.log.splitlines() if "model swap refused" in line]
    assert len(audit) == len(paths) + 1
    assert all(line["client"] == "127.0.0.1" and line["reason"] for line in audit)
    assert "SECRET" not in service.log.replace("models/secret", "")

    # Relative and absolute paths are accepted, and links inside the directory, as Kubernetes mounts a ConfigMap.
    data = models / "..data"
    data.mkdir()
    copy_of(data, "mounted.txt", version="1.2.0")
    (models / "mounted.txt").symlink_to(Path("..data") / "mounted.txt")
    (models / f"mounted.txt{MANIFEST}").symlink_to(Path("..data") / f"mounted.txt{MANIFEST}")
    assert swap(service, "mounted.txt").json()["version"] == "1.2.0"
    assert swap(service, models / "good.txt").json()["version"] == "1.1.0"
    begun = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - begun < 60


def test_a_model_with_another_signature_is_refused_unless_other_signature_is_true(
    service: Any, models: Path
) -> None:
    houses(models / "permuted.txt", ["age", "size"])
    houses(models / "classes.txt", ["size", "age"], outputs=3)
    houses(models / "more.txt", ["size", "age", "rooms"])
    tensor = {"name": "rows", "shape": [1, 2], "datatype": "FP64", "data": [1.5, -0.5]}

    def answer() -> Any:
        return service.client.post("/v2/models/houses/infer", json={"inputs": [tensor]}).json()["outputs"]

    before = answer()
    for name in ("permuted", "classes", "more"):
        refused = swap(service, f"{name}.txt", model="houses")
        assert refused.status_code == 422
        assert "other_signature" in refused.json()["detail"]
        assert answer() == before
    for not_boolean in ("true", 1, None):
        assert swap(service, "permuted.txt", model="houses", other_signature=not_boolean).status_code == 422
    allowed = swap(service, "permuted.txt", model="houses", other_signature=True)
    assert allowed.json()["version"] == "age-size-1"
    assert answer() != before


def test_the_trading_model_keeps_its_classes_even_with_other_signature(service: Any, models: Path) -> None:
    manifest = Manifest.read(manifest_path(BUNDLED_MODEL))
    copy_of(models, "classes.txt", classes=manifest.classes[::-1])
    assert swap(service, "classes.txt", other_signature=True).status_code == 422


def test_without_a_model_directory_every_swap_is_refused(serve: Callable[..., Any], models: Path) -> None:
    service = serve(ML_SERVICE_ADMIN_KEY=ADMIN)
    refused = swap(service, copy_of(models, "good.txt"))
    assert refused.status_code == 422
    assert "no model directory is configured" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("trusted", "client"), [("*", "203.0.113.7"), ("127.0.0.1", "203.0.113.7"), ("192.0.2.1", "127.0.0.1")]
)
def test_a_proxy_that_is_trusted_says_who_asks(
    serve: Callable[..., Any], tmp_path: Path, trusted: str, client: str
) -> None:
    service = serve(
        ML_SERVICE_ADMIN_KEY=ADMIN, ML_SERVICE_ADMIN_MODEL_DIR=str(tmp_path), FORWARDED_ALLOW_IPS=trusted
    )
    sender = {"X-API-Key": ADMIN, "X-Forwarded-For": "203.0.113.7"}
    assert service.client.post("/admin/model", json={"path": "none.txt"}, headers=sender).status_code == 422
    service.stop()
    lines = [json.loads(line) for line in service.log.splitlines()]
    assert [line["client"] for line in lines if line["message"] == "model swap requested"] == [client]
