"""`ml-api serve --model`: any LightGBM model over /v2, and no trading."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import httpx
import lightgbm
import numpy as np
import pytest

from ml_api.serving.registry import ModelUnusable, load_models
from ml_api.settings import Settings
from predictor import manifest_path, save

pytestmark = pytest.mark.anyio

Service = Callable[..., httpx.AsyncClient]
Headers = Callable[..., dict[str, str]]


def settings(path: Path) -> Settings:
    return Settings.model_validate({"api_key": "the-key-of-the-tests", "only_models": path})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A regressor with its manifest, and the same model as LightGBM alone writes it."""
    directory = tmp_path_factory.mktemp("models")
    sample = np.random.default_rng(3).normal(size=(200, 2))
    estimator = lightgbm.LGBMRegressor(n_estimators=3, verbose=-1).fit(sample, sample.sum(axis=1))
    save(estimator, directory / "sums.txt", sample=sample, name="sums", version="5")
    estimator.booster_.save_model(directory / "plain.txt")
    return directory


async def test_a_model_is_served_without_the_routes_of_trading(
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


async def test_a_folder_serves_every_model_and_one_without_a_manifest_is_named_after_its_file(
    service: Service, headers: Headers, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with service(only_models=folder) as client:
            index = (await client.post("/v2/repository/index", headers=headers())).json()
    assert [model["name"] for model in index] == ["plain", "sums"]
    assert "plain.txt has no manifest" in caplog.text


def test_what_is_no_model_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
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
