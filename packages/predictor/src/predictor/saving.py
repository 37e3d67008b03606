"""Save a trained estimator as a model file and its manifest: both, proved to answer as the estimator, or neither."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from predictor.errors import Unsupported
from predictor.manifest import Manifest, manifest_path
from predictor.manifest_writer import write_manifest

__all__ = ["save"]


def save(
    estimator: Any, path: str | os.PathLike[str], *, sample: Any, name: str, version: str, **options: Any
) -> Manifest:
    """
    Write *estimator* to *path* and its manifest beside it, and prove that the pair answers as the estimator does.

    Args:
        estimator: A fitted `LGBMClassifier`, `LGBMRegressor` or `LGBMRanker`, a `Booster`, or a scikit-learn pipeline
            of nothing but one of them.
        path: Where the model file goes; the manifest is `<path>.manifest.json`.
        sample: The training rows, or a fair sample of them, as the estimator takes them. Their kinds, categories,
            booleans, nulls and ranges become the manifest's.
        name: What the model is for.
        version: The version every prediction will carry.
        options: Further arguments of `write_manifest`, such as `policy`, `provenance` and `metrics`. `classes` are
            the estimator's own unless given.

    Returns:
        The manifest that was written.

    Raises:
        Unsupported: A pipeline with steps before its last, which no model file holds; a classifier that saw one class;
            or no estimator of LightGBM at all.
        GoldenRowMismatch: The saved model answers otherwise than *estimator* for *sample*.
        ModelTextError, SchemaError, ManifestError: As `write_manifest`.

    After an error neither file is there, or the old ones still are. Cost: three loads of the model.
    """
    if hasattr(estimator, "steps"):
        estimator = _last_step(estimator)
    booster = getattr(estimator, "booster_", estimator)
    if not hasattr(booster, "save_model") or not hasattr(booster, "feature_name"):
        raise Unsupported(f"{type(estimator).__name__} is no fitted estimator or Booster of LightGBM")
    target = Path(path)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        model = Path(folder, target.name)
        booster.save_model(str(model))
        if hasattr(estimator, "classes_"):
            if len(estimator.classes_) < 2:
                raise Unsupported(
                    f"the classifier was trained on one class, {str(estimator.classes_[0])!r}: train it on rows of two"
                )
            options.setdefault("classes", list(estimator.classes_))
        options.setdefault("expected", _answers(estimator, booster, sample))
        made = write_manifest(model, sample, name=name, version=version, **options)
        model.replace(target)  # a pair of which one is old is refused by its hash
        manifest_path(model).replace(manifest_path(target))
    return made


def _last_step(pipeline: Any) -> Any:
    """Return the estimator of a pipeline that does nothing else to its rows."""
    steps = [repr(name) for name, step in pipeline.steps[:-1] if step not in (None, "passthrough")]
    if steps:
        raise Unsupported(
            f"a model file holds no steps of a pipeline (here {', '.join(steps)}): save its last one, pipeline[-1],"
            " with sample=pipeline[:-1].transform(rows), and transform rows alike before they are predicted"
        )
    return pipeline.steps[-1][1]


def _answers(estimator: Any, booster: Any, sample: Any) -> Any:
    """Return what the trained object answers for *sample*; on one thread, which is safe beside this package's calls."""
    has_own_loss = callable(getattr(estimator, "objective", None))
    if hasattr(estimator, "predict_proba") and not has_own_loss:
        return estimator.predict_proba(sample, num_threads=1)
    return (estimator if estimator is not booster and not has_own_loss else booster).predict(
        sample, num_threads=1
    )
