"""
Gives damaged trees to the kernel's plan builder, and predicts rows with every plan that it makes.

    scripts/kernel fuzz gcc 60        under AddressSanitizer and UBSan, where a read out of bounds ends the process

Each round changes a few numbers in the arrays of a real model, and builds a plan, or gets a named refusal. Every call
of a plan must stay inside its memory, even if the trees were damaged. The seed of a round is its number.
"""

from __future__ import annotations

import argparse
import collections
import lzma
import time
from pathlib import Path
from typing import Any

import numpy as np

from predictor import _kernel
from predictor._model_file import parse_model_text

MODELS = Path(__file__).parents[1] / "packages/predictor/tests/models"
SPECIAL_VALUES = (0, 1, -1, 2, 31, 32, 63, 64, 255, 256, 65_535, 2**31 - 1, -(2**31), 2**30)


def arrays(path: Path) -> dict[str, Any]:
    """Return the arrays of one public model, at most of its first 40 trees."""
    parsed = parse_model_text(lzma.decompress(path.read_bytes()))
    trees, n = parsed.trees, min(40, len(parsed.trees)) // parsed.summary.n_outputs * parsed.summary.n_outputs
    nodes, leaves = int(trees.node_start[n]), int(trees.leaf_start[n])
    return {
        "n_features": len(parsed.summary.feature_names),
        "n_outputs": parsed.summary.n_outputs,
        "leaves": np.diff(trees.leaf_start[: n + 1]).astype(np.int32),
        "feature": trees.split_feature[:nodes].astype(np.int32),
        "threshold": trees.threshold[:nodes].copy(),
        "decision": trees.decision_type[:nodes].astype(np.uint8),
        "left": trees.left_child[:nodes].astype(np.int32),
        "right": trees.right_child[:nodes].astype(np.int32),
        "set_start": trees.category_start[:nodes].astype(np.int64),
        "set_size": trees.category_size[:nodes].astype(np.int32),
        "set_words": trees.category_words.astype(np.uint32),
        "leaf_value": trees.leaf_value[:leaves].copy(),
        "split_count": trees.internal_count[:nodes].astype(np.float64),
        "leaf_count": trees.leaf_count[:leaves].astype(np.float64),
    }


def damage(model: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Return a copy with a few numbers changed: bits flipped, neighbours exchanged, or unusual values put in."""
    changed = {
        name: value.copy() if isinstance(value, np.ndarray) else value for name, value in model.items()
    }
    names = [name for name, value in changed.items() if isinstance(value, np.ndarray) and len(value)]
    for _ in range(rng.integers(0, 4)):
        array = changed[names[rng.integers(len(names))]]
        at = rng.integers(len(array))
        choice = rng.integers(3)
        if choice == 0:
            raw = array.view(np.uint8)
            raw[rng.integers(len(raw))] ^= np.uint8(1 << rng.integers(8))
        elif choice == 1:
            array[[at, at - 1]] = array[[at - 1, at]]
        else:
            array[at : at + 1] = np.array([SPECIAL_VALUES[rng.integers(len(SPECIAL_VALUES))]]).astype(
                array.dtype
            )
    if rng.random() < 0.1:
        changed["n_features"] = int(rng.integers(-1, 20))
    if rng.random() < 0.1:
        changed["n_outputs"] = int(rng.integers(-1, 5))
    return changed


def call_all(engine: Any, model: dict[str, Any], rng: np.random.Generator) -> None:
    """Make every call of one plan, for some unusual rows."""
    n, width, outputs = int(rng.choice([1, 13, 70, 260])), model["n_features"], model["n_outputs"]
    pool = np.concatenate(
        [model["threshold"][:50], [np.nan, np.inf, -np.inf, 0.0, 1e-36, -1.0, 5.0, 3e9, 1e300]]
    )
    rows = rng.choice(pool, size=(n, width))
    for call in (engine.predict, engine.raw):
        call(rows, np.empty((n, outputs)), False)
    leaves = np.empty((n, len(model["leaves"])), np.int32)
    engine.leaves(rows, leaves, False)
    assert (leaves >= 0).all()
    assert (leaves < model["leaves"]).all()
    if engine.describe()["nodes"]:
        engine.explain(rows[:2], np.empty((min(n, 2), outputs, width + 1)), False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, help="repeat only the round with this number")
    args = parser.parse_args()
    models = [arrays(path) for path in sorted(MODELS.glob("*.xz"))]
    counts: collections.Counter[str] = collections.Counter()
    end, round_ = time.monotonic() + args.seconds, args.seed or 0
    while time.monotonic() < end:
        rng = np.random.default_rng(round_)
        model = damage(models[rng.integers(len(models))], rng)
        for level in _kernel.levels():
            made = _kernel.build(
                level=level, finish=int(rng.integers(6)), scale=1.0, walk_only=bool(rng.integers(2)), **model
            )
            if isinstance(made, str):
                counts[made] += 1
            else:
                counts["plans"] += 1
                call_all(made, model, rng)
        round_ += 1
        if args.seed is not None:
            break
    print(f"{round_} rounds: {dict(counts)}")
    assert args.seed is not None or (counts["plans"] > 0 and counts["bad_shape"] > 0)


if __name__ == "__main__":
    main()
