"""Makes the error for a refused row: it says what is wrong, and which policy or argument would accept the row."""

from __future__ import annotations

from predictor.errors import SchemaError

__all__ = [
    "ADD_COLUMNS",
    "AS_FLOAT",
    "AS_NUMBER",
    "AS_ROWS",
    "AS_TABLE",
    "LET_IN",
    "ONE_NAME",
    "SAY_LABELS",
    "by_policy",
    "of_sample",
]

LET_IN = {
    "missing": 'RowPolicy(missing="null") reads it as null',
    "extra": 'RowPolicy(extra="ignore") ignores it',
    "null": 'RowPolicy(null="allow") accepts it, or write_manifest(nullable=[...]) for this feature',
    "infinite": 'RowPolicy(infinite="allow") accepts it',
    "unseen": 'RowPolicy(unseen="allow") treats it as LightGBM does',
    "boolean": 'RowPolicy(boolean="number") reads it as 1 or 0',
    "large_integer": 'RowPolicy(large_integer="round") rounds it',
}
"""For each field of `RowPolicy`, the setting that accepts the cell."""

AS_NUMBER = "send a number; if the text is a label, name the labels in write_manifest(categories={...})"
AS_FLOAT = "convert decimal numbers to float, in SQL by CAST(... AS DOUBLE)"
AS_ROWS = "pass an array [n, features], a frame or table with named columns, or a list of rows"
AS_TABLE = "pass an Arrow table or record batch, or a Polars or pandas frame"
ADD_COLUMNS = "send one value for each feature in the manifest's order, or rows with names"
ONE_NAME = "rename or drop one of the two"
NAME_ALL = (
    "give each sample row every feature, null where it has no value; if the columns have other names than in the model"
    " file, such as after training on an array, pass names=[...] in the model's order"
)
SAY_LABELS = "name the labels in the order of the codes in write_manifest(categories={...})"


def by_policy(field: str, reason: str, *, feature: str | None = None, row: int | None = None) -> SchemaError:
    """Return the error for a cell that is refused by the setting *field* of `RowPolicy`."""
    return SchemaError(reason, remedy=LET_IN[field], policy=field, feature=feature, row=row)


def of_sample(error: SchemaError) -> SchemaError:
    """Return the error for a sample row that lacks a feature; the policy for served rows does not help there."""
    return SchemaError(error.reason, remedy=NAME_ALL, feature=error.feature, row=error.row)
