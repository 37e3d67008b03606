"""The typed errors, all under `PredictorError`. Each says what to do, and contains at most one cell of a row."""

from __future__ import annotations

__all__ = [
    "BatcherClosed",
    "EngineError",
    "EngineUnavailable",
    "GoldenRowMismatch",
    "IntegrityError",
    "ManifestError",
    "ModelError",
    "ModelTextError",
    "Overloaded",
    "PredictorError",
    "SchemaError",
    "Unsupported",
]


class PredictorError(Exception):
    """Base class of the errors of this package."""


class ModelError(PredictorError):
    """The model failed a check, so it was not loaded; a model that is being served stays in place."""


class ManifestError(ModelError):
    """The manifest is absent, malformed, or describes another model than the file beside it."""


class IntegrityError(ModelError):
    """The model's bytes do not have the expected SHA-256."""


class ModelTextError(ModelError):
    """The file is not a LightGBM text model that is safe to hand to LightGBM."""

    def __init__(self, reason: str, *, tree: int | None = None) -> None:
        where = "" if tree is None else f"tree {tree}: "
        super().__init__(f"not a loadable LightGBM text model: {where}{reason}; save it again from training")
        self.reason = reason
        self.tree = tree

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class GoldenRowMismatch(ModelError):
    """The loaded model does not give the numbers that were recorded when its manifest was made."""


class SchemaError(PredictorError, ValueError):
    """
    A row does not fit the manifest; `feature` and `row` say where (None: a single row, or a whole table).

    `reason` says what is wrong, `remedy` how to make it fit, and `policy` which field of `RowPolicy` decides, if any.
    """

    def __init__(
        self,
        reason: str,
        *,
        remedy: str | None = None,
        policy: str | None = None,
        feature: str | None = None,
        row: int | None = None,
    ) -> None:
        where = "".join(
            (
                f"row {row}: " if row is not None else "",
                f"feature {feature!r}: " if feature is not None else "",
            )
        )
        super().__init__(where + reason + (f"; {remedy}" if remedy is not None else ""))
        self.reason = reason
        self.remedy = remedy
        self.policy = policy
        self.feature = feature
        self.row = row

    def at_row(self, row: int | None) -> SchemaError:
        """Return the same error for another row."""
        return SchemaError(self.reason, remedy=self.remedy, policy=self.policy, feature=self.feature, row=row)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class Unsupported(PredictorError):
    """The model or estimator does not support this call (for example contributions of linear trees)."""


class EngineUnavailable(PredictorError):
    """LightGBM's shared library cannot be loaded, or `PREDICTOR_ENGINE` has an unknown value."""


class EngineError(PredictorError):
    """LightGBM refused a call, and its message is in the error; or an encoded matrix has a wrong shape or type."""


class Overloaded(PredictorError):
    """The batcher's queue is full: refuse the request (HTTP 503), or raise `max_queue`."""


class BatcherClosed(PredictorError):
    """The batcher was closed before this row was answered."""


def _rebuild(
    kind: type[PredictorError], args: tuple[object, ...], state: dict[str, object]
) -> PredictorError:
    """Recreate an error after pickle or copy, without formatting its message again."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error
