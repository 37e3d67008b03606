"""
What labels and large files cost beside LightGBM, in one process, with parity checked: the gates are in the table.

    python benchmarks/predictor_large.py            two ratios
    python benchmarks/predictor_large.py --check    exit 1 if one misses its gate

The frame has 200,000 rows and four category columns; LightGBM's time is `Booster.predict(frame, num_threads=1)`. The
file has some 31 MB: the trees of a public model twelve times over. Its time is `Booster(model_file=...)`, ours is the
whole of `Model.load`: hash, check, and LightGBM's own loading. CPU seconds, the least of several turns, alternating.
"""

from __future__ import annotations

import argparse
import lzma
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd

from predictor import Model, sha256_of, write_manifest

PUBLIC = Path(__file__).parents[1] / "packages/predictor/tests/models/mtpl2.txt.xz"
TURNS = 5


def least(**calls: Callable[[], Any]) -> dict[str, float]:
    """CPU seconds of each call: the least of several turns, in which they alternate."""
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


def large_file(folder: Path) -> float:
    text = lzma.decompress(PUBLIC.read_bytes())
    head, body = text.split(b"\nTree=", 1)
    blocks = [
        block.split(b"\n", 1)[1] for block in re.split(rb"(?m)^Tree=", body.partition(b"end of trees")[0])
    ]
    trees = [b"Tree=%d\n" % number + block for number, block in enumerate(blocks * 12)]
    sizes = b"tree_sizes=" + b" ".join(b"%d" % len(tree) for tree in trees)
    tail = b"end of trees\n\nfeature_importances:\n\n"
    whole = re.sub(rb"(?m)^tree_sizes=.*$", sizes, head) + b"\n" + b"".join(trees) + tail
    path, digest = folder / "large.txt", sha256_of(whole)
    path.write_bytes(whole)
    rows = np.floor(np.random.default_rng(0).normal(size=(50, 15)) * 5)
    model, booster = Model.load(path, sha256=digest), lgb.Booster(model_file=path)
    assert np.array_equal(model.predict_encoded(rows), booster.predict(rows, num_threads=1))
    took = least(ours=lambda: Model.load(path, sha256=digest), theirs=lambda: lgb.Booster(model_file=path))
    print(f"a file of {len(whole) / 1e6:.0f} MB: ours {took['ours']:.3f} s, LightGBM {took['theirs']:.3f} s")
    return took["ours"] / took["theirs"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.strip().partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, measure, most in (("labels", labels, 1.5), ("load", large_file, 3.0)):
            ratio = measure(Path(folder))
            missed += ratio > most
            print(f"{'ok  ' if ratio <= most else 'MISS'} {name}: {ratio:.2f} x LightGBM (at most {most:g})")
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
