"""The native kernel predicts the same bits as LightGBM at every instruction level and on every code path."""

from __future__ import annotations

import lzma
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import lightgbm as lgb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from predictor import _engine
from predictor._engine import Kernel, Refusal, RefusalName, make_kernel
from predictor._model_file import parse_model_text
from predictor._native import CONTRIB, LEAF, NORMAL, RAW
from predictor._self_check import hard_rows as self_check_rows

_kernel = pytest.importorskip("predictor._kernel", reason="the extension is not built")
ARCHIVES = sorted(Path(__file__).with_name("models").glob("*.txt.xz"))
SIZES = (1, 2, 6, 12, 13, 63, 64, 65, 255, 256, 257)
LEVELS = _kernel.levels()


@pytest.fixture(params=[(level, walk) for level in LEVELS for walk in (False, True)], ids=str)
def kernel_of(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[bytes], Kernel]]:
    """`kernel_of(data)`: the kernel at each available level, by its tables and by walking the trees alone."""
    level, walk = request.param
    monkeypatch.setenv("PREDICTOR_ENGINE", level)

    def make(data: bytes) -> Kernel:
        kernel = make_kernel(parse_model_text(data), walk_only=walk)
        assert isinstance(kernel, Kernel), kernel
        assert kernel.level == level
        assert not walk or (kernel.row_path, kernel.batch_path) == ("walk", "walk")
        return kernel

    return make


def same_bits(got: np.ndarray, expected: np.ndarray) -> bool:
    got, expected = np.ascontiguousarray(got), np.ascontiguousarray(expected)
    return got.shape == expected.shape and bool((got.view(np.int64) == expected.view(np.int64)).all())


def assert_parity(kernel: Kernel, booster: lgb.Booster, rows: np.ndarray) -> None:
    """Compare scores, outputs and leaves of batches and single rows bit for bit, and contributions to 1e-12."""
    outputs = booster.num_model_per_iteration()
    for kind, option in ((RAW, {"raw_score": True}), (NORMAL, {})):
        truth = np.asarray(booster.predict(rows, num_threads=1, **option)).reshape(len(rows), outputs)
        for n in (*SIZES, len(rows)):
            assert same_bits(kernel.predict(rows[:n], kind, release=n % 2 == 0), truth[:n]), (kind, n)
        singles = [kernel.predict(row[None], kind, release=False)[0] for row in rows[:100]]
        assert same_bits(np.array(singles), truth[:100])
    leaves = np.asarray(booster.predict(rows, pred_leaf=True, num_threads=1)).reshape(len(rows), -1)
    for n in SIZES:
        assert np.array_equal(kernel.predict(rows[:n], LEAF, release=False), leaves[:n])
    if kernel.explains:
        shares = np.asarray(booster.predict(rows[:30], pred_contrib=True, num_threads=1)).reshape(30, -1)
        got = kernel.predict(rows[:30], CONTRIB, release=False)
        assert np.abs(got - shares).max() <= 1e-12 * np.abs(shares).max()
        sums = got.reshape(30, outputs, -1).sum(axis=-1)
        raw = np.asarray(booster.predict(rows[:30], raw_score=True, num_threads=1)).reshape(30, outputs)
        assert np.abs(sums - raw).max() <= 1e-12 * np.abs(shares).max()


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name.removesuffix(".txt.xz"))
def test_public_models_match_lightgbm(archive, kernel_of, hard_rows):
    data = lzma.decompress(archive.read_bytes())
    booster = lgb.Booster(model_str=data.decode())
    assert_parity(kernel_of(data), booster, hard_rows(booster, count=400))


@pytest.mark.parametrize(
    "name",
    [
        *("regression", "binary", "binary_missing", "binary_categories", "categories_missing", "multiclass"),
        *(
            "two_class_softmax",
            "one_vs_all",
            "poisson",
            "cross_entropy",
            "zero_as_missing",
            "tiny_bins",
            "dart",
        ),
        "one_leaf",
    ],
)
def test_every_objective_and_missing_value_mode_matches_lightgbm(name, trained, kernel_of, hard_rows):
    subject = trained(name)
    rows = np.concatenate([subject.rows[:200], hard_rows(subject.booster, count=200)])
    assert_parity(kernel_of(subject.path.read_bytes()), subject.booster, rows)


@pytest.mark.parametrize(
    ("leaves", "row_path", "batch_path"),
    [(40, "words64", "blend"), (200, "walk", "blend"), (600, "walk", "walk")],
)
@pytest.mark.parametrize("categorical", [False, True])
def test_larger_trees_take_wider_words_or_are_walked_and_match_lightgbm(
    leaves, row_path, batch_path, categorical, kernel_of, hard_rows, request
):
    rng = np.random.default_rng(leaves)
    x = rng.normal(size=(3_000, 6))
    x[:, 3] = rng.integers(0, 90, 3_000)
    x[rng.random(x.shape) < 0.05] = np.nan
    y = np.sin(9 * x[:, 0]) * np.nan_to_num(x[:, 1]) + np.nan_to_num(x[:, 3]) % 7
    booster = lgb.train(
        {
            "num_leaves": leaves,
            "min_data_in_leaf": 2,
            "min_data_per_group": 2,
            "verbose": -1,
            "num_threads": 1,
        },
        lgb.Dataset(x, np.nan_to_num(y), categorical_feature=[3] if categorical else []),
        4,
    )
    data = booster.model_to_string().encode()
    booster = lgb.Booster(model_str=data.decode())
    kernel = kernel_of(data)
    _, walk_only = request.node.callspec.params["kernel_of"]
    expected = ("walk", "walk") if walk_only else (row_path, batch_path)
    assert (kernel.row_path, kernel.batch_path) == expected
    assert_parity(kernel, booster, np.concatenate([x[:100], hard_rows(booster, count=200)]))


RARE: dict[str, dict[str, object]] = {
    "missing values not used": {"use_missing": False},
    "zero missing, but not used": {"use_missing": False, "zero_as_missing": True},
    "thousands of categories": {"max_cat_threshold": 2_000, "cat_smooth": 0, "max_bin": 4_000},
    "categories one by one": {"max_cat_to_onehot": 100},
    "two bins": {"max_bin": 2},
    "a bin for each value": {"max_bin": 65_535, "min_data_in_bin": 1, "num_leaves": 500},
    "deep": {"num_leaves": 900, "min_sum_hessian_in_leaf": 0, "learning_rate": 1.0},
    "monotone": {"monotone_constraints": [1, -1, 0, 0, 0], "monotone_constraints_method": "advanced"},
    "cross_entropy_lambda": {"objective": "cross_entropy_lambda"},
    "scaled sigmoids": {"objective": "multiclassova", "num_class": 3, "sigmoid": 2.5},
    "square roots": {"reg_sqrt": True},
    "ranks": {"objective": "rank_xendcg"},
    "custom objective": {"objective": lambda scores, data: (scores - data.get_label(), np.ones(len(scores)))},
}


@pytest.mark.parametrize("name", RARE)
def test_rare_training_options_match_lightgbm(name, kernel_of, hard_rows):
    options, rng = RARE[name], np.random.default_rng(1)
    x = rng.normal(size=(1_000, 5)).round(2)
    x[:, 3:] = rng.integers(0, [2_000, 40], (1_000, 2))
    x[rng.random(x.shape) < 0.1] = np.nan
    y = np.nan_to_num(x[:, 0] * x[:, 1]) + np.nan_to_num(x[:, 4]) % 5
    objective = str(options.get("objective", ""))
    if objective.startswith(("multiclass", "rank")):
        y = np.digitize(y, np.quantile(y, [0.33, 0.66]))
    elif objective.startswith("cross"):
        y = (y > 2).astype(float)
    data = lgb.Dataset(
        x,
        y,
        categorical_feature=[] if "monotone" in name or "bin" in name else [3, 4],
        group=[50] * 20 if objective.startswith("rank") else None,
    )
    common = {"min_data_in_leaf": 1, "min_data_per_group": 1, "verbose": -1, "num_threads": 1}
    text = lgb.train(common | options, data, 4).model_to_string()
    booster = lgb.Booster(model_str=text)
    assert_parity(kernel_of(text.encode()), booster, np.concatenate([x[:60], hard_rows(booster, count=200)]))


@pytest.mark.parametrize(
    "sigmoid", ["3.64029", "6.63069", "18.7599", "2.00572e-06", "1.23457e+03", "0.7", "12", "+.5"]
)
@pytest.mark.parametrize("kind", ["binary", "one_vs_all"])
def test_a_sigmoid_parameter_is_read_as_lightgbm_reads_it(kind, sigmoid, trained, kernel_of, hard_rows):
    subject = trained(kind)
    text = re.sub(r"(?m)^(objective=.*sigmoid):1$", rf"\1:{sigmoid}", subject.path.read_text())
    assert f"sigmoid:{sigmoid}\n" in text
    booster = lgb.Booster(model_str=text)
    assert_parity(
        kernel_of(text.encode()), booster, np.concatenate([subject.rows, hard_rows(booster, count=200)])
    )


def test_more_thresholds_than_a_byte_holds_take_several_columns_and_match_lightgbm(kernel_of, hard_rows):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4_000, 2))
    booster = lgb.train(
        {
            "max_bin": 2_000,
            "min_data_in_bin": 1,
            "num_leaves": 30,
            "min_data_in_leaf": 1,
            "verbose": -1,
            "num_threads": 1,
        },
        lgb.Dataset(x, np.sin(50 * x[:, 0]) + rng.normal(size=4_000)),
        80,
    )
    data = booster.model_to_string().encode()
    trees = parse_model_text(data).trees
    thresholds = [len(np.unique(trees.threshold[trees.split_feature == feature])) for feature in range(2)]
    assert min(thresholds) > 255
    kernel, booster = kernel_of(data), lgb.Booster(model_str=data.decode())
    assert kernel._engine.describe()["columns"] == sum(math.ceil(count / 127) for count in thresholds)
    assert_parity(kernel, booster, np.concatenate([x[:200], hard_rows(booster, count=300)]))


@pytest.mark.parametrize("thresholds", [1, 31, 32, 33, 48, 127, 128, 254, 527, 528, 529, 545])
@pytest.mark.parametrize("missing", ["nan", "zero"])
def test_features_with_any_number_of_thresholds_match_lightgbm(thresholds, missing, kernel_of, hard_rows):
    # Each interval between two thresholds has its own target, so nearly every threshold is learned.
    rng = np.random.default_rng(thresholds)
    x = np.stack([np.arange(4_000.0) % (thresholds + 1) - 20, np.zeros(4_000)], axis=1)
    y = rng.normal(size=thresholds + 1)[np.arange(4_000) % (thresholds + 1)]
    x[rng.random(x.shape) < 0.1] = np.nan
    booster = lgb.train(
        {"max_bin": 4_000, "min_data_in_bin": 1, "num_leaves": 250, "min_data_in_leaf": 1, "verbose": -1}
        | {"learning_rate": 1.0, "num_threads": 1, "zero_as_missing": missing == "zero"},
        lgb.Dataset(x, y),
        6,
    )
    data = booster.model_to_string().encode()
    trees = parse_model_text(data).trees
    assert len(np.unique(trees.threshold[trees.split_feature == 0])) >= thresholds * 0.9
    booster = lgb.Booster(model_str=data.decode())
    assert_parity(kernel_of(data), booster, np.concatenate([x[:300], hard_rows(booster, count=300)]))


def test_eight_category_sets_share_a_column_and_match_lightgbm(kernel_of, hard_rows):
    rng = np.random.default_rng(4)
    x = rng.integers(0, 40, (2_000, 1)).astype(float)
    booster = lgb.train(
        {"num_leaves": 9, "min_data_in_leaf": 1, "min_data_per_group": 1, "cat_smooth": 0, "verbose": -1}
        | {"num_threads": 1, "learning_rate": 0.5},
        lgb.Dataset(x, rng.normal(size=40)[x[:, 0].astype(int)], categorical_feature=[0]),
        5,
    )
    data = booster.model_to_string().encode()
    trees = parse_model_text(data).trees
    ends = trees.category_start + trees.category_size
    words = (trees.category_words[start:end] for start, end in zip(trees.category_start, ends, strict=True))
    sets = {tuple(np.trim_zeros(own, "b").tolist()) for own in words}
    assert len(sets) > 16
    kernel, own = kernel_of(data), lgb.Booster(model_str=data.decode())
    assert kernel._engine.describe()["columns"] == math.ceil(len(sets) / 8)
    assert_parity(kernel, own, np.concatenate([x[:200], hard_rows(own, count=200)]))


@pytest.mark.parametrize("missing", ["none", "nan", "zero"])
def test_features_with_few_codes_share_a_table_of_words(missing, kernel_of, hard_rows):
    rng = np.random.default_rng(12)
    x = rng.integers(0, 2, (4_000, 14)).astype(float)
    x[:, 11], x[:, 12] = rng.integers(0, 4, 4_000), rng.integers(0, 5, 4_000)
    x[:, 13] = rng.normal(size=4_000)
    y = x @ np.linspace(1, 2, 14) + np.sin(9 * x[:, 13]) * x[:, 0] + x[:, 12] % 3
    if missing != "none":
        x[rng.random(x.shape) < 0.1] = np.nan
    booster = lgb.train(
        {"num_leaves": 31, "min_data_in_leaf": 1, "min_data_per_group": 1, "verbose": -1, "num_threads": 1}
        | {"zero_as_missing": missing == "zero", "feature_fraction": 0.5, "learning_rate": 0.3},
        lgb.Dataset(x, y, categorical_feature=[12]),
        20,
    )
    data = booster.model_to_string().encode()
    assert len(np.unique(parse_model_text(data).trees.split_feature)) == 14
    kernel, own = kernel_of(data), lgb.Booster(model_str=data.decode())
    assert kernel._engine.describe()["groups"] < 8 or kernel.row_path == "walk"
    flags = np.array(list(np.ndindex(*[2] * 11)), dtype=np.float64)  # each combination of the 11 flags
    rows = np.concatenate([flags, x[: len(flags), 11:]], axis=1)
    rows[1::2][rng.random(rows[1::2].shape) < 0.1] = np.nan
    truth = np.asarray(own.predict(rows, num_threads=1))[:, None]
    singles = [kernel.predict(row[None], NORMAL, release=False)[0] for row in rows]
    assert same_bits(np.array(singles), truth)
    assert_parity(kernel, own, np.concatenate([x[:200], hard_rows(own, count=200)]))


def test_every_nan_bit_pattern_is_a_missing_value(kernel_of, trained):
    subject = trained("binary_missing")
    rows = subject.rows[:300].copy()
    # Quiet and signalling NaNs of either sign, with and without a payload.
    bits = [
        0x7FF8000000000000,
        0xFFF8000000000000,
        0x7FF0000000000001,
        0xFFF7FFFFFFFFFFFF,
        0x7FF8DEAD0000BEEF,
    ]
    nans = np.resize(np.array(bits, dtype=np.uint64).view(np.float64), len(rows))
    rows[np.arange(300), np.arange(300) % 5] = nans
    assert len(np.unique(rows.view(np.uint64)[np.isnan(rows)])) == len(bits)
    assert_parity(kernel_of(subject.path.read_bytes()), subject.booster, rows)


@pytest.mark.parametrize("leaves", [2, 7, 32, 33, 64, 100, 128, 255, 256])
@pytest.mark.parametrize("outputs", [1, 4])
def test_models_with_trees_of_different_sizes_match_lightgbm(leaves, outputs, kernel_of, hard_rows):
    rng = np.random.default_rng(leaves)
    x = rng.normal(size=(1_500, 4))
    x[:, 3] = rng.integers(0, 30, 1_500)
    y = np.sin(5 * x[:, 0]) * x[:, 1] + x[:, 3] % 4
    params = {"min_data_in_leaf": 1, "min_data_per_group": 1, "verbose": -1, "num_threads": 1}
    # A class that no row has gets trees of one leaf.
    params |= {"objective": "multiclass", "num_class": 4} if outputs == 4 else {}
    data = lgb.Dataset(
        x,
        np.digitize(y, np.quantile(y, [0.4, 0.7])) if outputs == 4 else y,
        categorical_feature=[3],
        free_raw_data=False,
    )
    sizes = [leaves, 5, leaves, leaves // 2 + 2, *[leaves] * 7]
    booster = lgb.train(params, data, len(sizes), callbacks=[lgb.reset_parameter(num_leaves=sizes)])
    text = booster.model_to_string().encode()
    grown = np.diff(parse_model_text(text).trees.leaf_start)
    assert grown.max() == max(sizes)
    assert (grown.min() == 1) == (outputs == 4)
    own = lgb.Booster(model_str=text.decode())
    assert_parity(kernel_of(text), own, np.concatenate([x[:200], hard_rows(own, count=200)]))


@pytest.mark.parametrize("outputs", [2, 3, 4, 5, 6, 7, 8, 9, 20])
def test_sums_of_each_number_of_outputs_match_lightgbm(outputs, kernel_of, hard_rows):
    rng = np.random.default_rng(outputs)
    x = rng.normal(size=(600, 4))
    booster = lgb.train(
        {"objective": "multiclass", "num_class": outputs, "num_leaves": 9, "min_data_in_leaf": 1}
        | {"verbose": -1, "num_threads": 1},
        lgb.Dataset(x, np.arange(600) % outputs),
        70 // outputs + 1,
    )
    data = booster.model_to_string().encode()
    own = lgb.Booster(model_str=data.decode())
    assert_parity(kernel_of(data), own, np.concatenate([x[:100], hard_rows(own, count=100)]))


def test_softmax_of_an_infinite_score_is_lightgbms(kernel_of, trained):
    subject = trained("multiclass")
    booster = lgb.Booster(model_file=subject.path)
    for tree in (0, 3):  # of the first class: together they are infinity
        for leaf in range(int(np.diff(parse_model_text(subject.path.read_bytes()).trees.leaf_start)[tree])):
            booster.set_leaf_output(tree, leaf, 1.7e308)
    data, rows = booster.model_to_string().encode(), subject.rows[:70]
    truth = np.asarray(lgb.Booster(model_str=data.decode()).predict(rows, num_threads=1))
    assert np.isnan(truth[:, 0]).all()
    kernel = kernel_of(data)
    for n in (1, 70):
        assert np.array_equal(kernel.predict(rows[:n], NORMAL, release=False), truth[:n], equal_nan=True)


def test_contributions_of_paths_with_many_features_match_lightgbm(kernel_of):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3_000, 40))
    booster = lgb.train(
        {"num_leaves": 120, "min_data_in_leaf": 2, "feature_fraction": 0.3, "verbose": -1, "num_threads": 1},
        lgb.Dataset(x, (x**3).sum(axis=1)),
        10,
    )
    data = booster.model_to_string().encode()
    kernel = kernel_of(data)
    assert kernel.explains
    assert kernel._engine.describe()["nodes"] > 4
    assert_parity(kernel, lgb.Booster(model_str=data.decode()), x[:300])


CELL = st.one_of(
    st.floats(width=64),
    st.integers(-3, 70).map(float),
    st.sampled_from([math.nan, 0.0, -0.0, 1e-36, 3e9, -1e300]),
)


@settings(
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "25")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 10**6),
    leaves=st.integers(2, 80),
    bins=st.integers(3, 300),
    missing=st.sampled_from(["none", "nan", "zero"]),
    outputs=st.sampled_from([1, 3]),
    cells=st.lists(CELL, min_size=4, max_size=80),
)
def test_random_models_and_rows_match_lightgbm(
    kernel_of, hard_rows, seed, leaves, bins, missing, outputs, cells
):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(300, 4)).round(rng.integers(0, 5))
    x[:, 3] = rng.integers(0, 60, 300)
    if missing != "none":
        x[rng.random(x.shape) < 0.2] = np.nan
    y = rng.integers(0, outputs, 300) if outputs > 1 else rng.normal(size=300)
    parameters = (
        {"objective": "multiclass", "num_class": outputs} if outputs > 1 else {"objective": "regression"}
    )
    booster = lgb.train(
        parameters
        | {"num_leaves": leaves, "max_bin": bins, "zero_as_missing": missing == "zero", "min_data_in_leaf": 1}
        | {"min_data_per_group": 1, "verbose": -1, "num_threads": 1, "seed": seed},
        lgb.Dataset(x, y, categorical_feature=[3]),
        3,
    )
    data = booster.model_to_string().encode()
    own = lgb.Booster(model_str=data.decode())
    drawn = np.resize(np.array(cells), (max(20, len(cells) // 4), 4))
    assert_parity(kernel_of(data), own, np.concatenate([drawn, hard_rows(own, seed=seed, count=60)]))


def test_self_check_rows_include_thresholds_categories_nan_and_infinity(trained):
    trees = parse_model_text(trained("categories_missing").path.read_bytes()).trees
    rows = self_check_rows(trees, width=5)
    assert set(trees.threshold[trees.split_feature == 0].tolist()) & set(rows[:, 0].tolist())
    assert np.isnan(rows).any()
    assert np.isinf(rows).any()
    assert {0.0, 1.0, 2.0} <= set(rows[:, 4].tolist())


def test_a_failed_self_check_falls_back_to_lightgbm(trained, monkeypatch):
    monkeypatch.delenv("PREDICTOR_ENGINE", raising=False)
    predict = Kernel.predict

    def off_by_one_bit(self, rows, kind, *, release):
        answers = predict(self, rows, kind, release=release)
        if kind == NORMAL and len(rows) == 257:
            answers[-1, -1] = np.nextafter(answers[-1, -1], np.inf)
        return answers

    monkeypatch.setattr(Kernel, "predict", off_by_one_bit)
    model = trained("multiclass").load()
    assert model.info.engine.startswith("LightGBM")
    assert model.info.engine_reason.startswith("self_check: ")
    monkeypatch.setattr(Kernel, "predict", predict)
    assert trained("multiclass").load().info.engine == f"native kernel ({_engine.default_level()})"


@pytest.mark.parametrize(("name", "refusal"), [("linear", "linear_trees"), ("forest", "averaged_trees")])
def test_models_the_kernel_cannot_run_fall_back_to_lightgbm_with_the_reason(
    name, refusal, trained, monkeypatch
):
    monkeypatch.delenv("PREDICTOR_ENGINE", raising=False)
    subject = trained(name)
    kernel = make_kernel(parse_model_text(subject.path.read_bytes()))
    assert isinstance(kernel, Refusal)
    assert kernel.name == refusal
    assert kernel.reason
    assert subject.load().info.engine_reason == f"{kernel.name}: {kernel.reason}"
    assert same_bits(subject.load().predict(subject.rows), subject.truth(subject.rows))


def test_an_exp_that_differs_falls_back_to_lightgbm(trained, monkeypatch):
    monkeypatch.delenv("PREDICTOR_ENGINE", raising=False)
    _engine._exp_agrees.cache_clear()
    monkeypatch.setattr(_kernel, "exp", lambda x: math.nextafter(math.exp(x), math.inf))
    try:
        assert trained("binary").load().info.engine_reason.startswith("other_exp: ")
    finally:
        _engine._exp_agrees.cache_clear()


def test_every_plan_refusal_in_c_has_a_reason_in_python():
    source = (Path(__file__).parents[1] / "native" / "plan.c").read_text()
    names = {line.split('"')[1] for line in source.splitlines() if line.strip().startswith("[PLAN_")} - {
        "none"
    }
    assert names
    assert names <= set(get_args(RefusalName)) == set(_engine._REASONS)
