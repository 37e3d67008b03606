"""`ml-api serve --model`: any LightGBM model over /v2, without the trading routes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import lightgbm
import numpy as np
import pytest

from idempotency.stores.memory import MemoryStore
from ml_api.app import create_app
from ml_api.serving.registry import ModelUnusable, load_models
from ml_api.settings import Settings
from ml_api.stores.backend import Backend
from predictor import manifest_path, save

pytestmark = pytest.mark.anyio

Service = Callable[..., httpx.AsyncClient]
Headers = Callable[..., dict[str, str]]


def settings(path: Path) -> Settings:
    return Settings.model_validate({"api_key": "the-key-of-the-tests", "only_models": path})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a regressor and its manifest, and the same model without manifest."""
    directory = tmp_path_factory.mktemp("models")
    sample = np.random.default_rng(3).normal(size=(200, 2))
    estimator = lightgbm.LGBMRegressor(n_estimators=3, verbose=-1).fit(sample, sample.sum(axis=1))
    save(estimator, directory / "sums.txt", sample=sample, name="sums", version="5")
    estimator.booster_.save_model(directory / "plain.txt")
    return directory


async def test_only_models_serves_a_model_without_the_trading_routes(
    service: Service, headers: Headers, folder: Path
) -> None:
    body = b'{"inputs":[{"name":"rows","shape":[1,2],"datatype":"FP64","data":[1,2]}]}'
    async with service(only_models=folder / "sums.txt") as client:
        answer = await client.post("/v2/models/sums/infer", content=body, headers=headers())
        trading = await client.post("/predict", content=b"{}", headers=headers())
        health = (await client.get("/health")).json()
        document = (await client.get("/openapi.json")).json()
    assert answer.json()["outputs"][0]["shape"] == [1]
    assert trading.status_code == 404
    assert (health["modelLoaded"], health["modelVersion"]) == (True, "5")
    assert "/predict" not in document["paths"]


async def test_every_model_of_a_folder_is_served_and_one_without_manifest_is_named_after_its_file(
    service: Service, headers: Headers, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with service(only_models=folder) as client:
            index = (await client.post("/v2/repository/index", headers=headers())).json()
    assert [model["name"] for model in index] == ["plain", "sums"]
    assert "plain.txt has no manifest" in caplog.text


def test_unusable_model_paths_are_refused_with_the_reason(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("no model")
    altered = tmp_path / "altered.txt"
    altered.write_bytes((folder / "sums.txt").read_bytes() + b"\n")
    manifest_path(altered).write_bytes(manifest_path(folder / "sums.txt").read_bytes())
    for path, reason in (
        (tmp_path / "absent.txt", "absent.txt is not served"),
        (tmp_path / "empty", "holds no model"),
        (tmp_path / "note.txt", "note.txt is not served"),
        (altered, "altered.txt is not served"),
    ):
        with pytest.raises(ModelUnusable, match=reason):
            load_models(settings(path))


@contextlib.asynccontextmanager
async def started(path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the service with an admin key and a running lifespan, which swaps need."""
    keys = {"api_key": "the-key-of-the-tests", "admin_key": "the-key-of-the-admin"}
    store = MemoryStore()
    app = create_app(
        Settings.model_validate(keys | {"only_models": path}),
        backend=Backend("sqlite", store),
    )
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        client.headers["X-API-Key"] = keys["admin_key"]
        yield client


async def test_a_swap_needs_the_model_name_only_if_there_are_several_models(
    folder: Path, tmp_path: Path
) -> None:
    for kept in folder.glob("sums.txt*"):
        (tmp_path / kept.name).write_bytes(kept.read_bytes())
    sample = np.random.default_rng(4).normal(size=(200, 2))
    estimator = lightgbm.LGBMRegressor(n_estimators=4, verbose=-1).fit(sample, sample.sum(axis=1))
    async with started(tmp_path / "sums.txt") as client:
        save(estimator, tmp_path / "sums-6.txt", sample=sample, name="sums", version="6")
        swapped = await client.post("/admin/model", json={"path": "sums-6.txt"})
        health = (await client.get("/health")).json()
    assert (swapped.status_code, swapped.json()["version"], health["modelVersion"]) == (200, "6", "6")
    async with started(folder) as client:
        unnamed = await client.post("/admin/model", json={"path": "sums.txt"})
        named = await client.post("/admin/model", json={"path": "sums.txt", "model": "sums"})
    assert unnamed.status_code == 422
    assert unnamed.json()["detail"] == 'Send "model" with the name of the model to replace: plain, sums'
    assert (named.status_code, named.json()["model"]) == (200, "sums")
