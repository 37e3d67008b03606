"""Matches the columns of a row to features by name, as LightGBM names the columns of a data frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from predictor._refusals import ONE_NAME, by_policy
from predictor.errors import SchemaError
from predictor.manifest import Feature, RowPolicy

__all__ = ["NameFinder", "names_as_text"]


def names_as_text(names: list[Any], *, row: int | None) -> dict[str, Any]:
    """
    Return each of *names* by its text, `str(name)`, which is how LightGBM names the columns of a frame.

    Raises:
        SchemaError: Two names have the same text.
    """
    by_text = {name if type(name) is str else str(name): name for name in names}
    if len(by_text) != len(names):
        texts = [str(name) for name in names]
        repeated = next(text for text in texts if texts.count(text) > 1)
        raise SchemaError(f"a name is repeated: {repeated[:80]!r}", remedy=ONE_NAME, row=row)
    return by_text


class NameFinder:
    """Finds the features among the names of a row or table; the policy decides about missing and unknown names."""

    def __init__(self, features: Sequence[Feature], policy: RowPolicy) -> None:
        self._names = tuple(feature.name for feature in features)
        self._policy = policy
        # Known only by LightGBM's spelling, which has underscores for spaces; a row may still have the spaces.
        self._respelled = {f.name for f in features if f.name == f.model_name and "_" in f.name}

    def find(self, given: list[Any], index: int | None) -> dict[str, Any]:
        """
        Map each feature that is present to its name among *given*.

        A feature that is known only by LightGBM's spelling is also found if the row has spaces where that has
        underscores. If the row has both spellings, it is not clear which one the model was trained on: an error.

        Raises:
            SchemaError: A name is repeated, ambiguous, missing or unknown.
        """
        by_text = names_as_text(given, row=index)
        found = {name: by_text.pop(name) for name in self._names if name in by_text}
        if by_text and self._respelled:
            for text in [text for text in by_text if text.replace(" ", "_") in self._respelled]:
                name = text.replace(" ", "_")
                if name in found:
                    raise SchemaError(
                        f"{str(found[name])[:80]!r} and {text[:80]!r} are one name to LightGBM",
                        remedy=ONE_NAME + ", or say which it was in write_manifest(names=[...])",
                        feature=name,
                        row=index,
                    )
                found[name] = by_text.pop(text)
        if len(found) < len(self._names) and self._policy.missing == "refuse":
            absent = next(name for name in self._names if name not in found)
            raise by_policy("missing", "is missing", feature=absent, row=index)
        if by_text and self._policy.extra == "refuse":
            more = next(iter(by_text))
            raise by_policy("extra", "is not a feature of this model", feature=more[:80], row=index)
        return found
