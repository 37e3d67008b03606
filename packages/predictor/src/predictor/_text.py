"""
LightGBM's text format, checked line by line before LightGBM sees it.

LightGBM trusts a model file: a truncated one aborts the process, a child index that points back makes predict spin,
and an out-of-range feature index reads foreign memory. Everything its loader and its tree walk rely on is
checked here (LightGBM 4: `GBDT::LoadModelFromString`, `Tree::Tree(const char*)`), so that a bad file is a typed error.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from predictor._files import read_at_most
from predictor._objectives import OutputKind, output_kind
from predictor._tree import TreeSummary, check_tree
from predictor.errors import ModelTextError

__all__ = ["ModelText", "parse_model_text", "read_model"]

_FORMATS = ("v3", "v4")  # what LightGBM 3 and 4 write; others load without complaint and are refused here
_COUNT = re.compile(r"[0-9]{1,9}")
_NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|inf|nan)"
_NUMERIC_INFO = re.compile(rf"\[({_NUMBER}):({_NUMBER})\]")
_CATEGORY_INFO = re.compile(r"-?[0-9]{1,10}(?::-?[0-9]{1,10})*")
_MAX_BYTES = 1 << 30
_NO_TREES = "the model has no trees"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelText:
    """What a checked model file says about itself; indices are feature positions in `feature_names`."""

    format: str
    objective: str | None
    output: OutputKind
    n_outputs: int
    n_trees: int
    feature_names: tuple[str, ...]
    codes: Mapping[int, tuple[int, ...]]  # categorical feature -> the codes seen in training
    ranges: Mapping[
        int, tuple[float, float]
    ]  # numeric feature -> smallest and largest value seen in training
    missing: frozenset[int]  # features that were missing somewhere in training, as their splits tell
    pandas_categories: tuple[tuple[Any, ...], ...]
    is_linear: bool
    average_output: bool
    split_counts: tuple[int, ...]  # per feature, over all trees
    split_gains: tuple[float, ...]


def read_model(path: str | os.PathLike[str]) -> bytes:
    """
    Read a model file, at most as much of it as `parse_model_text` takes.

    Raises:
        ModelTextError: It is larger than that, or a device without end.
        OSError: It cannot be read.
    """
    data = read_at_most(path, _MAX_BYTES)
    if data is None:
        raise ModelTextError(f"more than {_MAX_BYTES} bytes")
    return data


def parse_model_text(data: bytes) -> ModelText:
    """
    Check *data*, a whole LightGBM text model, and return its summary.

    Raises:
        ModelTextError: Anything that LightGBM's loader or tree walk would not survive, or would silently misread.

    Cost: one pass, about 30 ms for a 1 MB model.
    """
    _check_bytes(data)
    first = data.find(b"\nTree=")
    if first < 0:
        raise ModelTextError(_NO_TREES)
    header = _header(_decode(data[:first]))
    num_class = _count(header, "num_class", least=1)
    n_outputs = _count(header, "num_tree_per_iteration", least=1)
    if n_outputs != num_class:
        raise ModelTextError(f"{n_outputs} trees per iteration for {num_class} outputs")
    names = _names(header, width=_count(header, "max_feature_idx", least=0) + 1)
    kinds = _FeatureInfos.parse(header, names)
    kind = output_kind(header.get("objective"), num_class=num_class)

    trees, rest = _trees(data, first + 1, header, width=len(names))
    if len(trees) % n_outputs:
        raise ModelTextError(f"{len(trees)} trees do not fill iterations of {n_outputs}")
    pandas_categories = _tail(_decode(data[rest:]))

    counts, gains, missing = [0] * len(names), [0.0] * len(names), set[int]()
    for index, tree in enumerate(trees):
        for feature, gain, categorical, saw_missing in tree.splits:
            counts[feature] += 1
            gains[feature] += gain
            if saw_missing:
                missing.add(feature)
            if categorical != (feature in kinds.codes):
                told = "categorical" if feature in kinds.codes else "numeric"
                raise ModelTextError(
                    f"splits {names[feature]!r} against its kind, {told} in feature_infos", tree=index
                )
    return ModelText(
        format=header["version"],
        objective=header.get("objective"),
        output=kind,
        n_outputs=n_outputs,
        n_trees=len(trees),
        feature_names=names,
        codes=kinds.codes,
        ranges=kinds.ranges,
        missing=frozenset(missing),
        pandas_categories=pandas_categories,
        # LightGBM asks its own parameter, and refuses contributions, also where no tree came out linear.
        is_linear=any(tree.is_linear for tree in trees) or b"\n[linear_tree: 1]" in data[rest:],
        average_output="average_output" in header,
        split_counts=tuple(counts),
        split_gains=tuple(gains),
    )


def _check_bytes(data: bytes) -> None:
    if not data.startswith(b"tree\n"):
        raise ModelTextError(
            "it does not start with the line 'tree' (pickles and binary formats are never loaded)"
        )
    if len(data) > _MAX_BYTES:
        raise ModelTextError(f"{len(data)} bytes, more than {_MAX_BYTES}")
    if b"\r" in data:
        raise ModelTextError("carriage returns: a transfer in text mode changed the line ends")
    if b"\0" in data:
        raise ModelTextError("a NUL byte, where LightGBM would stop reading")


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelTextError("text that is not UTF-8") from error


def _header(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in text.split("\n")[1:]:
        key, _, value = line.partition("=")
        if not line:
            continue
        if key in found:
            raise ModelTextError(f"header line {key[:40]!r} appears twice")
        if "=" in value and key not in ("feature_names", "monotone_constraints"):
            raise ModelTextError(f"header line {key[:40]!r} has more than one '='")
        found[key] = value
    for key in ("version", "feature_names", "feature_infos", "label_index", "tree_sizes"):
        if key not in found:
            raise ModelTextError(f"header line {key!r} is missing")
    if found["version"] not in _FORMATS:
        raise ModelTextError(f"format version {found['version'][:20]!r}, known are {', '.join(_FORMATS)}")
    return found


def _count(header: Mapping[str, str], key: str, *, least: int) -> int:
    text = header.get(key, "")
    if not _COUNT.fullmatch(text) or int(text) < least:
        raise ModelTextError(f"header line {key!r} must be a whole number of at least {least}")
    return int(text)


def _names(header: Mapping[str, str], *, width: int) -> tuple[str, ...]:
    names = tuple(header["feature_names"].split(" "))
    if len(names) != width:
        raise ModelTextError(f"{len(names)} feature names for {width} features")
    if len(set(names)) != width or "" in names:
        raise ModelTextError("feature names are empty or repeated")
    constraints = header.get("monotone_constraints")
    if constraints is not None and not re.fullmatch(rf"(?:-?[01] ){{{width - 1}}}-?[01]", constraints):
        raise ModelTextError("monotone_constraints must be one of -1, 0, 1 per feature")
    return names


@dataclass(frozen=True, slots=True)
class _FeatureInfos:
    """The header's word on each feature: `[min:max]`, a list of category codes, or `none` (constant, never split)."""

    codes: dict[int, tuple[int, ...]]
    ranges: dict[int, tuple[float, float]]

    @classmethod
    def parse(cls, header: Mapping[str, str], names: tuple[str, ...]) -> _FeatureInfos:
        infos = header["feature_infos"].split(" ")
        if len(infos) != len(names):
            raise ModelTextError(f"{len(infos)} feature_infos for {len(names)} features")
        found = cls({}, {})
        for index, info in enumerate(infos):
            if info == "none":
                continue
            if span := _NUMERIC_INFO.fullmatch(info):
                found.ranges[index] = (float(span[1]), float(span[2]))
            elif _CATEGORY_INFO.fullmatch(info):  # -1 stands for "missing", which is no category
                found.codes[index] = tuple(sorted({code for code in map(int, info.split(":")) if code >= 0}))
                if max(found.codes[index], default=0) >= 1 << 31:  # LightGBM keeps categories in 32 bits
                    raise ModelTextError(f"feature_infos of {names[index]!r} has a category too large")
            else:
                raise ModelTextError(f"feature_infos of {names[index]!r} cannot be read")
        return found


def _trees(
    data: bytes, start: int, header: Mapping[str, str], *, width: int
) -> tuple[list[TreeSummary], int]:
    """Check every tree; LightGBM finds them by `tree_sizes` alone, so those bytes must be the trees exactly."""
    texts = header["tree_sizes"].split(" ")
    if not all(map(_COUNT.fullmatch, texts)):
        raise ModelTextError("tree_sizes must be whole numbers")
    trees: list[TreeSummary] = []
    for index, size in enumerate(map(int, texts)):
        block = data[start : start + size]
        if len(block) < size or not block.endswith(b"\n\n") or not block.startswith(b"Tree=%d\n" % index):
            raise ModelTextError("its bytes do not match tree_sizes (cut off or edited)", tree=index)
        try:
            trees.append(check_tree(block.decode("ascii"), width=width))
        except UnicodeDecodeError as error:
            raise ModelTextError("text that is not ASCII", tree=index) from error
        except ModelTextError as error:
            raise ModelTextError(error.reason, tree=index) from error
        start += size
    return trees, start


def _tail(text: str) -> tuple[tuple[Any, ...], ...]:
    """Check what follows the trees and return the pandas categories, one tuple per category column."""
    if not text.startswith("end of trees\n"):
        raise ModelTextError("'end of trees' is missing (cut off, or trees were added)")
    if "\nfeature_importances:\n" not in text:
        raise ModelTextError("feature_importances is missing (cut off)")
    if "\nTree=" in text:
        raise ModelTextError("a tree after 'end of trees'")
    if text.count("\nparameters:\n") != text.count("\nend of parameters\n"):
        raise ModelTextError("the parameters section does not end (cut off)")
    last = text.rpartition("\nend of parameters\n")[2].strip("\n") if "\nend of parameters\n" in text else ""
    if last and not last.startswith("pandas_categorical:"):
        raise ModelTextError("something else than pandas_categorical after the parameters (cut off)")
    _, found, line = text.rpartition("\npandas_categorical:")
    if not found:
        return ()
    try:
        columns = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ModelTextError("pandas_categorical is not JSON (cut off)") from error
    if columns is None:
        return ()
    if not isinstance(columns, list) or not all(isinstance(column, list) for column in columns):
        raise ModelTextError("pandas_categorical must be a list of lists")
    for label in (label for column in columns for label in column):
        if not isinstance(label, str | int | float) or (
            isinstance(label, float) and not math.isfinite(label)
        ):
            raise ModelTextError("pandas_categorical holds something that is no category label")
    return tuple(tuple(column) for column in columns)
