"""
The time of category labels and of loading large files, as ratios to LightGBM in one process, with parity checked.

    python benchmarks/predictor_large.py            print the ratios and goals
    python benchmarks/predictor_large.py --check    exit 1 if a goal is missed

The frame has 200,000 rows and four category columns; LightGBM's time is that of `Booster.predict(frame,
num_threads=1)`. The files have about 31 MB each: the trees of a public model, or of one trained here, repeated.
LightGBM's time is that of `Booster(model_file=...)`. Ours is that of `Model.load`: hash, checks, loading in LightGBM,
the kernel's plan and its self-check. Times are CPU seconds, the least of several alternating turns. LightGBM uses one
thread, because `Model.load` sets that for the process.
"""

from __future__ import annotations

import argparse
import lzma
import re
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
from harness.results import Result, add_options, finish

from predictor import Model, sha256_of, write_manifest

PUBLIC = Path(__file__).parents[1] / "packages/predictor/tests/models/mtpl2.txt.xz"
TURNS = 5


def least(**calls: Callable[[], Any]) -> dict[str, float]:
    """Return the CPU seconds of each call: the least of several alternating turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            start = process_time()
            call()
            times[name].append(process_time() - start)
    return {name: min(values) for name, values in times.items()}


def labels(folder: Path) -> float:
    rng = np.random.default_rng(0)
    words = [[f"{column}{k}" for k in range(30)] for column in "abcd"]
    frame = pd.DataFrame(
        {f"k{i}": pd.Categorical(rng.choice(found, 200_000)) for i, found in enumerate(words)}
    )
    frame["x"] = rng.normal(size=len(frame))
    score = sum(frame[f"k{i}"].cat.codes % (i + 2) for i in range(4)) + frame["x"]
    train = frame[:20_000]
    booster = lgb.train({"verbose": -1, "num_threads": 1}, lgb.Dataset(train, score[:20_000]), 20)
    booster.save_model(folder / "labels.txt")
    expected = booster.predict(train, num_threads=1)
    write_manifest(folder / "labels.txt", train, name="labels", version="1", expected=expected)
    model = Model.load(folder / "labels.txt")
    assert np.array_equal(model.predict(frame), booster.predict(frame, num_threads=1))
    took = least(ours=lambda: model.predict(frame), theirs=lambda: booster.predict(frame, num_threads=1))
    print(f"200,000 rows, four category columns: ours {took['ours']:.3f} s, LightGBM {took['theirs']:.3f} s")
    return took["ours"] / took["theirs"]


def trained(leaves: int, rounds: int, width: int, **parameters: Any) -> bytes:
    rng = np.random.default_rng(leaves)
    rows = rng.normal(size=(8_000, width))
    score = np.sin(3 * rows[:, 0]) * rows[:, 1] + (rows**2).sum(axis=1) / width + rng.normal(size=len(rows))
    settings = {"num_leaves": leaves, "min_data_in_leaf": 2, "verbose": -1, "num_threads": 1} | parameters
    return lgb.train(settings, lgb.Dataset(rows, score), rounds).model_to_string().encode()


SHAPES: dict[str, Callable[[], bytes]] = {
    "public, 12,000 trees with categories": lambda: lzma.decompress(PUBLIC.read_bytes()),
    "trees of 31 leaves": lambda: trained(31, 200, 28),
    "trees of 7 leaves": lambda: trained(7, 400, 28),
    "trees of 255 leaves": lambda: trained(255, 40, 28),
    "trees of 2,000 leaves": lambda: trained(2_000, 6, 28, max_bin=1_023),
    "500 features": lambda: trained(63, 60, 500),
}


def repeated(text: bytes, size: float) -> bytes:
    """Return the model *text* with its trees repeated, up to about *size* bytes."""
    head, body = text.split(b"\nTree=", 1)
    blocks = [
        block.split(b"\n", 1)[1] for block in re.split(rb"(?m)^Tree=", body.partition(b"end of trees")[0])
    ]
    times = max(1, round(size / len(text)))
    trees = [b"Tree=%d\n" % number + block for number, block in enumerate(blocks * times)]
    sizes = b"tree_sizes=" + b" ".join(b"%d" % len(tree) for tree in trees)
    tail = b"end of trees\n\nfeature_importances:\n\n"
    return re.sub(rb"(?m)^tree_sizes=.*$", sizes, head) + b"\n" + b"".join(trees) + tail


def large_file(folder: Path, shape: str, size: float = 31e6) -> float:
    whole = repeated(SHAPES[shape](), size)
    path, digest = folder / "large.txt", sha256_of(whole)
    path.write_bytes(whole)
    model, booster = Model.load(path, sha256=digest), lgb.Booster(model_file=path)
    rows = np.floor(np.random.default_rng(0).normal(size=(50, booster.num_feature())) * 5)
    assert np.array_equal(model.predict_encoded(rows), booster.predict(rows, num_threads=1))
    took = least(ours=lambda: Model.load(path, sha256=digest), theirs=lambda: lgb.Booster(model_file=path))
    print(f"{len(whole) / 1e6:.0f} MB: ours {took['ours']:.3f} s, LightGBM {took['theirs']:.3f} s")
    return took["ours"] / took["theirs"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.strip().partition("\n")[0])
    add_options(parser)
    options = parser.parse_args()
    measures: list[tuple[str, Callable[[Path], float], float]] = [("labels", labels, 1.5)]
    measures += [(f"load, {shape}", partial(large_file, shape=shape), 3.0) for shape in SHAPES]
    if options.quick:
        measures = [("load, small", partial(large_file, shape="trees of 31 leaves", size=1e6), 3.0)]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name, measure, most in measures:
            result = Result(name=name, value=measure(Path(folder)), unit="× LightGBM", goal=most)
            results.append(result)
            print(f"{name}: {result.value:.2f} x LightGBM  {result.verdict}")
    return finish(options, results)


if __name__ == "__main__":
    sys.exit(main())
