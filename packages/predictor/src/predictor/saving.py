"""Saves a trained estimator as a model file and its manifest; writes neither if they do not answer as the estimator."""

from __future__ import annotations

import errno
import os
import tempfile
import warnings
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
    Write *estimator* to *path* and its manifest beside it, and check that the saved model answers as the estimator.

    Args:
        estimator: A fitted `LGBMClassifier`, `LGBMRegressor` or `LGBMRanker`, a `Booster`, or a scikit-learn pipeline
            with only one of them and no other step.
        path: The model file to write; the manifest is `<path>.manifest.json`.
        sample: The training rows, or a random sample of them, in the form that the estimator takes. The manifest
            records their types, categories, booleans, nulls and ranges.
        name: What the model is for.
        version: The version that every prediction states.
        options: Further arguments of `write_manifest`, such as `policy`, `provenance` and `metrics`. `classes` default
            to the estimator's `classes_`; others are new names for these, in the same order.

    Returns:
        The manifest that was written.

    Raises:
        Unsupported: *estimator* is a pipeline with other steps, which a model file cannot hold; a classifier trained on
            one class; one whose class labels are neither text nor numbers; or not a fitted estimator of LightGBM.
        GoldenRowMismatch: The saved model and *estimator* give different answers for *sample*.
        ManifestError: *estimator* itself does not accept *sample*; and as `write_manifest`.
        ModelTextError, SchemaError: As `write_manifest`.
        FileNotFoundError: The directory of *path* does not exist.

    After an error, old files at *path* are unchanged and no new ones are there. Cost: three loads of the model.
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
            if options.setdefault("classes", None) is None:
                options["classes"] = _labels(estimator.classes_)
            else:
                _refuse_other_order(options["classes"], estimator.classes_)
        if "expected" not in options:
            options["expected"] = _answers(estimator, booster, sample)
        # `path` among the options raises TypeError here, because this call passes it already.
        made = write_manifest(model, sample, name=name, version=version, path=manifest_path(model), **options)
        # Between these two lines, the new model and the old manifest do not match: loading them is refused by SHA-256.
        model.replace(target)
        manifest_path(model).replace(manifest_path(target))
    return made


def _last_step(pipeline: Any) -> Any:
    """Return the last step of a pipeline, if it is the only one that does anything."""
    steps = [repr(name) for name, step in pipeline.steps[:-1] if step not in (None, "passthrough")]
    if steps:
        raise Unsupported(
            f"a model file holds no steps of a pipeline (here {', '.join(steps)}): save its last step, pipeline[-1],"
            " with sample=pipeline[:-1].transform(rows), and transform rows in the same way before each prediction"
        )
    return pipeline.steps[-1][1]


def _booster(estimator: Any) -> Any:
    """
    Return the Booster in *estimator*.

    Raises:
        Unsupported: There is none, or more than one; the message says what to save instead.
    """
    kind = type(estimator).__name__
    if kind == "CVBooster":  # its __getattr__ returns a function for any name, so `hasattr` below is useless
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
        reason += (
            "; a model file holds only trees: save the LightGBM estimator inside it, if that alone is enough"
        )
    raise Unsupported(reason)


def _refuse_other_order(given: Any, own: Any) -> None:
    """
    Refuse class labels of which one is the estimator's own label of another class.

    Raises:
        ManifestError: Rows of that class would get the label of another one.
    """
    positions = {str(label): index for index, label in enumerate(own)}
    for index, label in enumerate(given):
        at = positions.get(str(label), index)
        if at != index:
            raise ManifestError(
                f"classes: {str(label)!r} is class {at} of the estimator, not {index}; its order is"
                f" {', '.join(map(str, own))}: give new names in that order, or leave classes out"
            )


def _labels(classes: Any) -> list[Any]:
    """
    Return the class labels as Python values.

    Raises:
        Unsupported: A label, such as a date, is neither text nor a number.
    """
    labels = [getattr(label, "item", lambda label=label: label)() for label in classes]
    for label in labels:
        if not isinstance(label, str | int | float):
            raise Unsupported(
                f"a class label is of type {type(label).__name__}, but a manifest can hold only text and numbers:"
                " train on str(label), or pass classes=[...] in the order of estimator.classes_"
            )
    return labels


def _answers(estimator: Any, booster: Any, sample: Any) -> Any:
    """
    Return the trained object's answers for *sample*.

    With one thread, because another LightGBM thread count would disturb concurrent calls of this package.

    Raises:
        ManifestError: It does not accept the sample.
    """
    has_own_loss = callable(getattr(estimator, "objective", None))
    was_given_names = any(name != f"Column_{i}" for i, name in enumerate(booster.feature_name()))
    try:
        with warnings.catch_warnings():
            if not was_given_names:  # LightGBM 4.6 says that it was, after training with an array
                warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
            if hasattr(estimator, "predict_proba") and not has_own_loss:
                return estimator.predict_proba(sample, num_threads=1)
            trained = estimator if estimator is not booster and not has_own_loss else booster
            return trained.predict(sample, num_threads=1)
    except Exception as error:
        raise ManifestError(
            f"the estimator itself does not accept the sample ({str(error).partition(chr(10))[0]}): pass its training"
            " rows, or some of them, with the same columns and dtypes and without the label"
        ) from error
