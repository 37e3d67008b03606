"""Save a trained estimator as a model file and its manifest: both, proved to answer as the estimator, or neither."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

from predictor.errors import ManifestError, Unsupported
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
            labels of classes that are neither text nor numbers; or no fitted estimator of LightGBM at all.
        GoldenRowMismatch: The saved model answers otherwise than *estimator* for *sample*.
        ManifestError: *estimator* itself does not take *sample*; and as `write_manifest`.
        ModelTextError, SchemaError: As `write_manifest`.
        FileNotFoundError: There is no such directory.

    After an error neither file is there, or the old ones still are. Cost: three loads of the model.
    """
    while isinstance(getattr(estimator, "steps", None), list):
        estimator = _last_step(estimator)
    booster = _booster(estimator)
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target.parent))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        model = Path(folder, target.name)
        booster.save_model(str(model))
        if hasattr(estimator, "classes_"):
            if len(estimator.classes_) < 2:
                raise Unsupported(
                    f"the classifier was trained on one class, {str(estimator.classes_[0])!r}: train it on rows of two"
                )
            options.setdefault("classes", _labels(estimator.classes_))
        if "expected" not in options:
            options["expected"] = _answers(estimator, booster, sample)
        # A path among the options would be a second one, and raises TypeError here.
        made = write_manifest(model, sample, name=name, version=version, path=manifest_path(model), **options)
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


def _booster(estimator: Any) -> Any:
    """
    Return the Booster in *estimator*.

    Raises:
        Unsupported: There is none, or more than one; says which object to save instead.
    """
    kind = type(estimator).__name__
    if kind == "CVBooster":  # answers every name with a function
        raise Unsupported("CVBooster is several models: save one of its boosters")
    if kind.startswith("LGBM") and not hasattr(estimator, "booster_"):
        raise Unsupported(f"{kind} is no fitted estimator: call its fit first")
    booster = getattr(estimator, "booster_", estimator)
    if hasattr(booster, "save_model") and hasattr(booster, "feature_name"):
        return booster
    reason = f"{kind} is no fitted estimator or Booster of LightGBM"
    if hasattr(estimator, "best_estimator_"):
        reason += ": save its best_estimator_"
    elif hasattr(estimator, "predict"):
        reason += "; a model file holds trees, not what else it computes: save an LGBMModel of it, if that is enough"
    raise Unsupported(reason)


def _labels(classes: Any) -> list[Any]:
    """
    Return the labels as Python values.

    Raises:
        Unsupported: JSON has no such labels, as dates.
    """
    labels = [getattr(label, "item", lambda label=label: label)() for label in classes]
    for label in labels:
        if not isinstance(label, str | int | float):
            raise Unsupported(
                f"a class label is of type {type(label).__name__}, and a manifest holds text and numbers:"
                " train on str(label), or pass classes=[...] in the order of estimator.classes_"
            )
    return labels


def _answers(estimator: Any, booster: Any, sample: Any) -> Any:
    """
    Return what the trained object answers for *sample*; on one thread, which is safe beside this package's calls.

    Raises:
        ManifestError: It does not take the sample.
    """
    has_own_loss = callable(getattr(estimator, "objective", None))
    try:
        if hasattr(estimator, "predict_proba") and not has_own_loss:
            return estimator.predict_proba(sample, num_threads=1)
        trained = estimator if estimator is not booster and not has_own_loss else booster
        return trained.predict(sample, num_threads=1)
    except Exception as error:
        raise ManifestError(
            f"the estimator itself does not take the sample ({str(error).partition(chr(10))[0]}): pass the rows that it"
            " was trained on, or some of them, with the same columns and dtypes and without the label"
        ) from error
