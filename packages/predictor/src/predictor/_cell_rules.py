"""Converts a cell of a row to the exact float64 that LightGBM gets, by the feature's manifest entry, or refuses it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from predictor._refusals import AS_FLOAT, AS_NUMBER, by_policy
from predictor.errors import SchemaError
from predictor.manifest import Feature, Label, RowPolicy

__all__ = ["EXACT", "UNSEEN", "CellRules"]

EXACT = 2**53  # float64 holds every whole number up to this one exactly
UNSEEN = -1.0  # LightGBM treats a negative category like one that training did not have: it goes right


class CellRules:
    """The values that are allowed for each feature; safe to share among threads."""

    def __init__(
        self,
        features: Sequence[Feature],
        policy: RowPolicy,
        *,
        ordered: Collection[int] = (),
        as_numbers: Collection[int] = (),
        unlabelled: Collection[int] = (),
    ) -> None:
        """Take the same arguments as `RowSchema`."""
        self.features = tuple(features)
        self.policy = policy
        self.names = tuple(feature.name for feature in self.features)
        self.width = len(self.names)
        self.codes: dict[int, dict[Label, float]] = {
            index: dict(zip(feature.categories or (), map(float, feature.codes or ()), strict=True))
            for index, feature in enumerate(self.features)
            if feature.kind == "category"
        }
        self.integers = [i for i, feature in enumerate(self.features) if feature.kind == "integer"]
        self.ordered = frozenset(ordered)
        self.as_numbers = frozenset(as_numbers)
        self.unlabelled = frozenset(unlabelled)
        # If the labels are LightGBM's own codes, no translation is needed, and the fast path can be used.
        self.own_codes = {
            index: codes for index, codes in self.codes.items() if all(a == b for a, b in codes.items())
        }

    def number(self, index: int, value: Any, row: int | None) -> float:
        """
        Convert one cell of feature *index* by its type. `RowSchema` checks nulls, infinities and fractions afterwards.

        Raises:
            SchemaError: The cell does not fit. The error names the feature, and *row* unless that is None.
        """
        feature = self.features[index]
        if isinstance(value, np.generic):
            # A NumPy time stays as it is, to be refused below: its `item()` may be a plain whole number (nanoseconds).
            value = value if value.dtype.kind in "mM" else value.item()
        if value is None or type(value).__name__ == "NAType":  # pandas.NA, without importing pandas
            return math.nan
        if isinstance(value, bool):
            if self.policy.boolean == "refuse":
                raise by_policy("boolean", "is a boolean, not a number", feature=feature.name, row=row)
            value = int(value)
        if index in self.codes:
            return self._code(index, value, row)
        return self._number(feature, value, row)

    def _number(self, feature: Feature, value: Any, row: int | None) -> float:
        if type(value) is int:
            return self._exact(feature, value, row)
        if isinstance(value, float):
            return float(value)
        kind = type(value).__name__
        remedy = AS_FLOAT if kind == "Decimal" else AS_NUMBER
        raise SchemaError(f"is {kind}, not a number", remedy=remedy, feature=feature.name, row=row)

    def _exact(self, feature: Feature, value: int, row: int | None) -> float:
        try:
            number = float(value)
        except OverflowError:
            raise SchemaError(
                "is larger than any float64", remedy="send null", feature=feature.name, row=row
            ) from None
        if number != value and self.policy.large_integer == "refuse":
            reason = f"{value} is not exact as float64"
            raise by_policy("large_integer", reason, feature=feature.name, row=row)
        return number

    def _code(self, index: int, value: Any, row: int | None) -> float:
        feature = self.features[index]
        if not isinstance(value, str | int | float):
            raise SchemaError(
                f"is {type(value).__name__}, not a category",
                remedy=f"send one of the labels, such as {self._shown(index)}",
                feature=feature.name,
                row=row,
            )
        if isinstance(value, float) and math.isnan(value):
            return math.nan
        code = self.codes[index].get(value)
        if code is not None:
            return code
        if self.drops_negative(index) and _is_negative(value):
            return math.nan  # LightGBM reads a negative code as missing; encoders use -1 for unknown labels
        if self.policy.unseen == "refuse":
            is_huge = isinstance(value, int) and value.bit_length() > 1_000  # Python may refuse to write it
            shown = "a huge whole number" if is_huge else repr(value)[:40]
            reason = f"{shown} is a category that training did not have"
            raise by_policy("unseen", reason, feature=feature.name, row=row)
        if index in self.as_numbers and not isinstance(value, float):
            return self._number(feature, value, row)
        if isinstance(value, str) or index not in self.own_codes or index in self.ordered:
            return UNSEEN
        # The labels are LightGBM's codes: pass the number on, so that LightGBM reads it as Booster.predict would.
        return value if isinstance(value, float) else float(value) if abs(value) < EXACT else UNSEEN

    def drops_negative(self, index: int) -> bool:
        """Whether a negative code of category feature *index* is a missing value."""
        return index in self.own_codes and index not in self.ordered and index not in self.as_numbers

    def _shown(self, index: int) -> str:
        return ", ".join(repr(label)[:20] for label in list(self.codes[index])[:3]) or "none"


def _is_negative(value: float | str) -> bool:
    """Whether LightGBM reads *value* as a negative code: it drops the fraction, so -0.5 is code 0."""
    return not isinstance(value, str) and -math.inf < value <= -1
