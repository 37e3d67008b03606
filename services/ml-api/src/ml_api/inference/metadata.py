"""Describes models: the protocol's metadata, Triton's model configuration, and the repository index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_api.inference.rows import datatype_of, label_datatype
from predictor import Model, ModelSlot

__all__ = ["model_config", "model_metadata", "repository_index"]

Described = dict[str, Any]


def model_metadata(name: str, model: Model) -> Described:
    """
    Return the metadata of one model.

    `inputs` are the tensors of the usual request: one matrix, or for a model with text categories one tensor per
    feature. `features` and `classes` have the same form for every model: names, datatypes, categories and labels.
    """
    info = model.info
    features = [
        {
            "name": feature.name,
            "datatype": datatype_of(feature),
            "nullable": feature.nullable,
            **({"categories": list(feature.categories)} if feature.categories is not None else {}),
        }
        for feature in model.features
    ]
    by_feature = any(feature["datatype"] == "BYTES" for feature in features)
    return {
        "name": name,
        "versions": [info.version],
        "platform": "lightgbm",
        "inputs": [
            {"name": feature["name"], "datatype": feature["datatype"], "shape": [-1]} for feature in features
        ]
        if by_feature
        else [{"name": "rows", "datatype": "FP64", "shape": [-1, len(features)]}],
        "outputs": _outputs(model),
        "features": features,
        "classes": list(info.classes),
        "parameters": {
            "features": ",".join(info.features),
            "classes": ",".join(map(str, info.classes)),
            "objective": info.objective or "",
        },
    }


def model_config(name: str, model: Model) -> Described:
    """Return the configuration of one model, in the form that Triton's clients expect."""
    metadata = model_metadata(name, model)

    def tensors(members: list[Described]) -> list[Described]:
        return [
            {
                "name": member["name"],
                "data_type": f"TYPE_{member['datatype'].replace('BYTES', 'STRING')}",
                "dims": member["shape"],
            }
            for member in members
        ]

    return {
        "name": name,
        "platform": "lightgbm",
        "backend": "lightgbm",
        "max_batch_size": 0,
        "version_policy": {"specific": {"versions": [model.info.version]}},
        "input": tensors(metadata["inputs"]),
        "output": tensors(metadata["outputs"]),
        "parameters": {key: {"string_value": value} for key, value in metadata["parameters"].items()},
    }


def repository_index(models: Mapping[str, ModelSlot]) -> list[Described]:
    """Return every served model with its version."""
    return [
        {"name": name, "version": slot.current.info.version, "state": "READY", "reason": ""}
        for name, slot in sorted(models.items())
    ]


def _outputs(model: Model) -> list[Described]:
    """Return the tensors of `predict`, which every model has, and of the further outputs that it offers."""
    info = model.info
    several = [info.n_classes] if info.n_classes > 1 else []
    outputs: list[Described] = [{"name": "predict", "datatype": "FP64", "shape": [-1, *several]}]
    if info.output not in ("value", "raw"):
        outputs += [
            {"name": "probabilities", "datatype": "FP64", "shape": [-1, max(2, info.n_classes)]},
            {"name": "label", "datatype": label_datatype(info.classes or (0,)), "shape": [-1]},
        ]
    if not model.is_linear:
        outputs += [
            {"name": "contributions", "datatype": "FP64", "shape": [-1, *several, len(info.features)]},
            {"name": "bias", "datatype": "FP64", "shape": [-1, *several]},
        ]
    return outputs
