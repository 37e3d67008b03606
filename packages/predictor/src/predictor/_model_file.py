"""
Checks a model file in LightGBM's text format line by line, and rewrites it for LightGBM.

LightGBM trusts a model file: a truncated one aborts the process, a child index that points back makes predict loop for
ever, and a feature index out of range reads foreign memory. This module checks everything that LightGBM's loader and
tree walk rely on (LightGBM 4: `GBDT::LoadModelFromString`, `Tree::Tree(const char*)`), so that a bad file raises a
typed error. LightGBM never gets the file itself. It gets a text that is written from what was read here
(`ParsedModel.lightgbm_text`), with the numbers spelled as in the file, so both readers read the same lines.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor._objectives import OutputKind, output_kind
from predictor._system import read_at_most
from predictor._trees import CATEGORICAL, MISSING, Trees, parse_trees
from predictor.errors import ModelTextError

__all__ = ["ModelText", "ParsedModel", "parse_model_text", "read_model"]

_FORMATS = ("v3", "v4")  # of LightGBM 2.3, 3 and 4; LightGBM would load any other without an error
_HEADER = frozenset(
    {
        *("version", "num_class", "num_tree_per_iteration", "label_index", "max_feature_idx", "objective"),
        *("average_output", "feature_names", "monotone_constraints", "feature_infos", "tree_sizes"),
    }
)
_COUNT = re.compile(r"[0-9]{1,9}")
_NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|inf|nan)"
_NUMERIC_INFO = re.compile(rf"\[({_NUMBER}):({_NUMBER})\]")
_CATEGORY_INFO = re.compile(r"-?[0-9]{1,10}(?::-?[0-9]{1,10})*")
_MAX_BYTES = 1 << 30
# Most categories that splits may name, over all features; each takes about 100 bytes here.
_MOST_CODES = 1 << 22
_NO_TREES = "the model has no trees"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelText:
    """The facts that a checked model file states; an index is a feature's position in `feature_names`."""

    format: str
    objective: str | None
    output: OutputKind
    n_outputs: int
    n_trees: int
    feature_names: tuple[str, ...]
    # Categorical feature -> the codes of feature_infos and of its splits.
    codes: Mapping[int, tuple[int, ...]]
    listed: frozenset[int]  # categorical features whose codes feature_infos lists
    mixed: frozenset[int]  # categorical features that some splits read as plain numbers (continued training)
    # Numeric feature -> smallest and largest value seen in training.
    ranges: Mapping[int, tuple[float, float]]
    missing: frozenset[int]  # features with missing values in training, as their splits show
    pandas_categories: tuple[tuple[Any, ...], ...]
    is_linear: bool
    average_output: bool
    split_counts: tuple[int, ...]  # per feature, over all trees


def read_model(path: str | os.PathLike[str]) -> bytes:
    """
    Read a model file of at most 1 GiB, the limit of `parse_model_text`.

    Raises:
        ModelTextError: The file is larger, or is an endless device.
        OSError: The file cannot be read.
    """
    data = read_at_most(path, _MAX_BYTES)
    if data is None:
        raise ModelTextError(f"more than {_MAX_BYTES} bytes")
    return data


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedModel:
    """A checked model file: its summary, and its trees as arrays."""

    summary: ModelText
    trees: Trees

    def split_gains(self) -> list[float]:
        """Return for each feature the total gain of its splits."""
        width = len(self.summary.feature_names)
        gains: list[float] = np.bincount(
            self.trees.split_feature, self.trees.split_gain, minlength=width
        ).tolist()
        return gains

    def first(self, iterations: int) -> ParsedModel:
        """
        Return the model of the first *iterations* iterations, >= 1; the whole model if it has fewer.

        LightGBM stores the range of iterations on its booster, so two callers with different ranges would disturb each
        other. Therefore the shorter model is a separate model.
        """
        if iterations < 1:
            raise ValueError("num_iteration must be at least 1")
        trees = self.trees.first(iterations * self.summary.n_outputs)
        counts = np.bincount(trees.split_feature, minlength=len(self.summary.feature_names))
        summary = dataclasses.replace(self.summary, n_trees=len(trees), split_counts=tuple(counts.tolist()))
        return ParsedModel(summary=summary, trees=trees)

    def lightgbm_text(self) -> bytes:
        """
        Write the text that LightGBM loads.

        Feature names are replaced by placeholders, which does not change predictions. Only numbers and the objective
        are copied from the file.
        """
        summary = self.summary
        width, trees = len(summary.feature_names), self.trees
        head = [
            "tree\nversion=v4",
            f"num_class={summary.n_outputs}",
            f"num_tree_per_iteration={summary.n_outputs}",
            "label_index=0",
            f"max_feature_idx={width - 1}",
            *([f"objective={summary.objective}"] if summary.objective is not None else []),
            *(["average_output"] if summary.average_output else []),
            "feature_names=" + " ".join(f"f{index}" for index in range(width)),
            "feature_infos=" + " ".join(["none"] * width),
            "tree_sizes=" + " ".join(map(str, trees.text_sizes.tolist())),
        ]
        tail = "end of trees\n"
        if summary.is_linear:
            tail += "\nparameters:\n[linear_tree: 1]\nend of parameters\n"
        return b"".join(("\n".join(head).encode(), b"\n\n", trees.text, tail.encode()))


def parse_model_text(data: bytes) -> ParsedModel:
    """
    Check *data*, a whole LightGBM text model, and return its content.

    Raises:
        ModelTextError: LightGBM's loader or tree walk would crash on the file, loop for ever, or silently misread it.

    Cost: one pass; see benchmarks/predictor_large.py.
    """
    data = _unix_line_ends(data)
    _check_bytes(data)
    first = data.find(b"\nTree=")
    if first < 0:
        raise ModelTextError(_NO_TREES)
    header = _header(_decode(data[:first]))
    num_class = _count(header, "num_class", least=1)
    n_outputs = _count(header, "num_tree_per_iteration", least=1)
    if n_outputs != num_class:
        raise ModelTextError(f"{n_outputs} trees per iteration for {num_class} outputs")
    _count(header, "label_index", least=0)
    names = _names(header, width=_count(header, "max_feature_idx", least=0) + 1)
    infos = _FeatureInfos.parse(header, names)
    kind = output_kind(header.get("objective"), num_class=num_class)

    trees, rest = parse_trees(data, first + 1, header["tree_sizes"], width=len(names))
    if len(trees) % n_outputs:
        raise ModelTextError(f"{len(trees)} trees do not fill iterations of {n_outputs}")
    pandas_categories = _tail(_decode(data[rest:]))

    decision, feature = trees.decision_type, trees.split_feature
    categorical = (decision & CATEGORICAL) != 0
    codes = _codes(infos, trees, names)
    summary = ModelText(
        format=header["version"],
        objective=header.get("objective"),
        output=kind,
        n_outputs=n_outputs,
        n_trees=len(trees),
        feature_names=names,
        codes=codes,
        listed=frozenset(infos.codes),
        mixed=_present(feature[~categorical]) & codes.keys(),
        ranges={index: span for index, span in infos.ranges.items() if index not in codes},
        missing=_present(feature[(decision & MISSING) != 0]),
        pandas_categories=pandas_categories,
        # LightGBM refuses contributions by this parameter alone, even if no tree has linear leaves.
        is_linear=bool(trees.is_linear.any()) or b"\n[linear_tree: 1]" in data[rest:],
        average_output="average_output" in header,
        split_counts=tuple(np.bincount(feature, minlength=len(names)).tolist()),
    )
    return ParsedModel(summary=summary, trees=trees)


def _present(features: NDArray[np.int32]) -> frozenset[int]:
    """Return the distinct values of *features*; counting them is faster than sorting them."""
    return frozenset(np.flatnonzero(np.bincount(features)).tolist())


def _unix_line_ends(data: bytes) -> bytes:
    """
    Return *data* with Unix line ends around its last line.

    LightGBM's Python package appends that line, `pandas_categorical:`, in text mode, so on Windows there is CR LF
    before and after it. LightGBM's library does not read the line. `_check_bytes` refuses CR anywhere else.
    """
    if b"\r" not in data:
        return data
    head, found, line = data.rpartition(b"\r\npandas_categorical:")
    return (
        b"%b\npandas_categorical:%b\n" % (head, line.removesuffix(b"\n").removesuffix(b"\r"))
        if found
        else data
    )


def _check_bytes(data: bytes) -> None:
    if not data.startswith((b"tree\n", b"tree\r\n")):
        raise ModelTextError(
            "it does not start with the line 'tree' (pickles and binary formats are never loaded)"
        )
    if len(data) > _MAX_BYTES:
        raise ModelTextError(f"{len(data)} bytes, more than {_MAX_BYTES}")
    if b"\r" in data:
        raise ModelTextError(
            "carriage returns: a transfer in text mode changed the line ends; copy it in binary mode"
        )
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
        if key not in _HEADER:
            raise ModelTextError(f"header line {key[:40]!r} is not one that LightGBM 3 or 4 writes")
        if key in found:
            raise ModelTextError(f"header line {key[:40]!r} appears twice")
        if "=" in value and key != "feature_names":
            raise ModelTextError(f"header line {key[:40]!r} has more than one '='")
        found[key] = value
    for key in ("version", "feature_names", "feature_infos", "label_index", "tree_sizes"):
        if key not in found:
            raise ModelTextError(f"header line {key!r} is missing")
    if found["version"] not in _FORMATS:
        raise ModelTextError(
            f"unknown format version {found['version'][:20]!r}; to convert an older file to {_FORMATS[-1]}, run"
            " lightgbm.Booster(model_file=...).save_model(...) with LightGBM 4"
        )
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
    if constraints is not None and (
        constraints.count(" ") != width - 1 or not {"-1", "0", "1"}.issuperset(constraints.split(" "))
    ):
        raise ModelTextError("monotone_constraints must be one of -1, 0, 1 per feature")
    return names


@dataclass(frozen=True, slots=True)
class _FeatureInfos:
    """The header line `feature_infos`: per feature `[min:max]`, category codes, or `none` (constant, never split)."""

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


def _codes(infos: _FeatureInfos, trees: Trees, names: tuple[str, ...]) -> dict[int, tuple[int, ...]]:
    """
    Return the codes of each categorical feature: those of `feature_infos`, and those that splits name.

    After continued training `feature_infos` describes only the last training data. There the feature may have had a
    single category (`none`), or may have been a number.
    """
    named: dict[int, NDArray[np.int64]] = _codes_of_splits(trees)
    found = {}
    for index in {*infos.codes, *named}:
        known = set(infos.codes.get(index, ()))
        if index in infos.ranges:
            low, high = infos.ranges[index]
            if not (low == math.floor(low) and high == math.floor(high) and high - low < _MOST_CODES):
                raise ModelTextError(
                    f"feature {names[index]!r} is split by categories, but its feature_infos is [{low:g}:{high:g}]"
                )
            known.update(range(max(0, int(low)), int(high) + 1))
        found[index] = tuple(sorted(known.union(named[index].tolist() if index in named else ())))
        if max(found[index], default=0) >= 1 << 31:  # LightGBM keeps categories in 32 bits
            raise ModelTextError(f"feature {names[index]!r} has a category too large")
    return found


def _codes_of_splits(trees: Trees) -> dict[int, NDArray[np.int64]]:
    """Return for each categorical feature the categories that some split sends left, in rising order."""
    nodes = np.flatnonzero(trees.category_size)
    sizes = trees.category_size[nodes]
    if not sizes.sum():
        return {
            int(index): np.empty(0, np.int64)
            for index in np.unique(trees.split_feature[(trees.decision_type & CATEGORICAL) != 0])
        }
    # The position of each word in its own set.
    place = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    words = trees.category_words[place + np.repeat(trees.category_start[nodes], sizes)]
    feature = np.repeat(trees.split_feature[nodes], sizes)
    order = np.lexsort((place, feature))
    feature, place, words = feature[order], place[order], words[order]
    firsts = np.flatnonzero(np.append(True, (np.diff(feature) != 0) | (np.diff(place) != 0)))
    feature, place, words = feature[firsts], place[firsts], np.bitwise_or.reduceat(words, firsts)
    if int(np.bitwise_count(words).sum()) > _MOST_CODES:
        raise ModelTextError(f"its splits name more than {_MOST_CODES} categories")
    bits = np.unpackbits(words.astype("<u4").view(np.uint8).reshape(len(words), 4), axis=1, bitorder="little")
    row, bit = np.nonzero(bits)
    codes, owner = place[row] * 32 + bit, feature[row]
    return {
        int(index): codes[owner == index]
        for index in np.unique(trees.split_feature[(trees.decision_type & CATEGORICAL) != 0])
    }


def _tail(text: str) -> tuple[tuple[Any, ...], ...]:
    """Check what follows the trees and return the pandas categories, one tuple per category column."""
    if not text.startswith("end of trees\n"):
        raise ModelTextError("'end of trees' is missing (cut off, or trees were added)")
    # The second is LightGBM 2.3's heading.
    if "\nfeature_importances:\n" not in text and "\nfeature importances:\n" not in text:
        raise ModelTextError("feature_importances is missing (cut off)")
    if "\nTree=" in text:
        raise ModelTextError("a tree after 'end of trees'")
    if text.count("\nparameters:\n") != text.count("\nend of parameters\n"):
        raise ModelTextError("the parameters section does not end (cut off)")
    last = text.rpartition("\nend of parameters\n")[2].strip("\n") if "\nend of parameters\n" in text else ""
    if last and not last.startswith("pandas_categorical:"):
        raise ModelTextError("the line after the parameters is not pandas_categorical (cut off)")
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
            raise ModelTextError("a label in pandas_categorical is neither text nor a finite number")
    return tuple(tuple(column) for column in columns)
