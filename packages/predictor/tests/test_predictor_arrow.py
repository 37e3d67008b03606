"""`Scorer` in pandas, Polars, DuckDB, Dask and Arrow: LightGBM's numbers, one load per process, a pinned file."""

from __future__ import annotations

import pickle
import shutil

import dask.dataframe as dd
import duckdb
import lightgbm as lgb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from predictor import IntegrityError, ManifestError, Model, SchemaError, arrow, manifest_path, save
from predictor.arrow import Scorer


@pytest.fixture(params=["binary", "multiclass", "regression"])
def subject(request, trained):
    return trained(request.param)


def table(rows: int = 3_000) -> pa.Table:
    x = np.random.default_rng(1).normal(size=(rows, 5)).round(3)
    return pa.table({"id": np.arange(rows), **{name: x[:, index] for index, name in enumerate("edcba")}})


def truth(subject, rows: pa.Table) -> np.ndarray:
    matrix = np.stack([rows[name].to_numpy() for name in "abcde"], axis=1)
    return subject.truth(matrix).reshape(len(rows), -1)


def answers(rows: pa.Table, scorer: Scorer) -> np.ndarray:
    return np.stack([rows[name].to_numpy() for name in scorer.names], axis=1)


def test_scorer_appends_the_answers_and_keeps_the_type_of_the_table(subject):
    rows, scorer = table(), Scorer(subject.path)
    expected = truth(subject, rows)
    for given in (rows, rows.combine_chunks().to_batches()[0], pl.from_arrow(rows), rows.to_pandas()):
        scored = scorer(given)
        assert type(scored) is type(given)
        found = (
            scored
            if isinstance(scored, pa.Table | pa.RecordBatch)
            else pa.table(dict(scored.items() if isinstance(scored, pd.DataFrame) else scored.to_dict()))
        )
        assert found.schema.names == [*rows.column_names, *scorer.names]
        assert np.array_equal(np.stack([np.asarray(found[name]) for name in scorer.names], axis=1), expected)


def test_polars_map_batches_on_a_lazy_frame_matches_lightgbm(subject):
    rows, scorer = table(), Scorer(subject.path)
    schema = pl.from_arrow(rows).schema
    lazy = (
        pl.from_arrow(rows)
        .lazy()
        .map_batches(scorer, schema={**schema, **dict.fromkeys(scorer.names, pl.Float64)})
    )
    assert np.array_equal(answers(lazy.collect().to_arrow(), scorer), truth(subject, rows))


def test_duckdb_arrow_function_matches_lightgbm(subject):
    rows, scorer = table(), Scorer(subject.path)
    kind = "DOUBLE" if len(scorer.names) == 1 else f"DOUBLE[{len(scorer.names)}]"
    with duckdb.connect() as connection:
        connection.create_function("score", scorer.columns, None, kind, type="arrow")
        found = connection.sql("SELECT id, score(a, b, c, d, e) AS p FROM rows ORDER BY id").fetchall()
    assert np.array_equal(np.array([p for _, p in found]).reshape(len(rows), -1), truth(subject, rows))


def test_duckdb_function_answers_rows_with_nulls(trained):
    subject = trained("binary_missing")
    rows = pa.table({name: pa.array(subject.rows[:, i], from_pandas=True) for i, name in enumerate("abcde")})
    assert rows.column("a").null_count
    scorer = Scorer(subject.path)
    with duckdb.connect() as connection:
        connection.create_function(
            "score", scorer.columns, None, "DOUBLE", type="arrow", null_handling="special"
        )
        found = connection.sql("SELECT score(a, b, c, d, e) FROM rows").fetchall()
    assert [p for (p,) in found] == subject.truth(subject.rows).tolist()


def test_duckdb_enum_columns_are_read_by_label(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"x": rng.normal(size=300), "side": pd.Categorical(rng.choice(["buy", "hold", "sell"], 300))}
    )
    booster = lgb.train(
        {"verbose": -1, "num_threads": 1}, lgb.Dataset(frame, frame["side"].cat.codes * 2 + frame["x"]), 5
    )
    save(booster, tmp_path / "m.txt", sample=frame, name="m", version="1")
    with duckdb.connect() as connection:
        connection.register("rows", pa.table({"x": frame["x"], "side": frame["side"].astype(str)}))
        connection.sql("CREATE TYPE sides AS ENUM ('sell', 'buy', 'hold')")
        scorer = Scorer(tmp_path / "m.txt")
        connection.create_function("score", scorer.columns, None, "DOUBLE", type="arrow")
        found = connection.sql("SELECT score(x, side::sides) FROM rows").fetchall()
    assert [p for (p,) in found] == booster.predict(frame, num_threads=1).tolist()


def test_dask_map_partitions_matches_lightgbm(subject):
    rows, scorer = table().to_pandas(), Scorer(subject.path)
    meta = rows.head(0).assign(**dict.fromkeys(scorer.names, 0.0))
    scored = (
        dd.from_pandas(rows, npartitions=4).map_partitions(scorer, meta=meta).compute(scheduler="threads")
    )
    assert np.array_equal(scored[list(scorer.names)].to_numpy(), truth(subject, table()))


def test_scorer_batches_match_the_raw_scores_of_lightgbm(subject):
    rows, scorer = table(), Scorer(subject.path, raw=True)
    scored = pa.Table.from_batches(scorer.batches(rows.to_batches(max_chunksize=700)))
    matrix = np.stack([rows[name].to_numpy() for name in "abcde"], axis=1)
    expected = subject.truth(matrix, raw_score=True).reshape(len(rows), -1)
    assert np.array_equal(answers(scored, scorer), expected)


def test_a_pickled_scorer_reuses_the_loaded_model_and_a_changed_file_is_refused(
    trained, tmp_path, monkeypatch
):
    path = tmp_path / "model.txt"
    shutil.copy(trained("binary").path, path)
    shutil.copy(manifest_path(trained("binary").path), manifest_path(path))
    loads: list[object] = []
    load = Model.load
    monkeypatch.setattr(Model, "load", lambda *args, **options: loads.append(args) or load(*args, **options))
    scorer = Scorer(path)
    copy = pickle.loads(pickle.dumps(scorer))
    assert copy == scorer
    assert copy(table(3)).equals(scorer(table(3)))
    assert len(loads) == 1
    shutil.copy(trained("regression").path, path)
    shutil.copy(manifest_path(trained("regression").path), manifest_path(path))
    assert Scorer(path).names == ("prediction",)
    arrow._load_once.cache_clear()  # as in another process
    with pytest.raises(IntegrityError):
        copy(table(3))


def test_batches_that_do_not_fit_the_model_are_refused(trained, tmp_path):
    scorer = Scorer(trained("binary").path)
    with pytest.raises(SchemaError, match="is missing"):
        scorer(table().drop_columns(["c"]))
    with pytest.raises(SchemaError, match="the name of an answer"):
        scorer(scorer(table()))
    with pytest.raises(SchemaError, match="feature 'a': a name is repeated"):
        scorer(table().append_column("a", table()["a"]))
    twice = table().append_column("id", table()["id"])  # not a feature
    assert scorer(twice)["p_yes"].equals(scorer(table())["p_yes"])
    for rows in ([{"a": 1.0}], table()["a"], np.zeros((2, 5)), pl.from_arrow(table()).lazy()):
        with pytest.raises(SchemaError, match="are not understood; pass an Arrow table"):
            scorer(rows)
    with pytest.raises(SchemaError, match="4 columns for 5 features; pass a, b, c, d, e"):
        scorer.columns(*table().columns[:4])
    with pytest.raises(ManifestError):
        Scorer(tmp_path / "absent.txt")
