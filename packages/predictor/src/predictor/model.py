"""A verified LightGBM model: load it once, ask it from any thread, get LightGBM's numbers or a typed error."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from predictor._engine import Kernel, Refusal, make_kernel
from predictor._features import features_of, labels_of, ordered_categories
from predictor._model_file import ModelText, ParsedModel, parse_model_text, read_model
from predictor._native import CONTRIB, LEAF, NORMAL, RAW, Booster, RowCall, engine_name
from predictor._objectives import OutputKind, most_probable, per_class
from predictor._self_check import agrees
from predictor._system import available_cpus
from predictor._tables import dense_blocks, is_sparse
from predictor.errors import (
    EngineError,
    IntegrityError,
    ManifestError,
    ModelError,
    ModelTextError,
    Unsupported,
)
from predictor.explain import Explanation
from predictor.integrity import check_bits, check_digest, check_manifest, check_ulps, sha256_of
from predictor.manifest import Label, Manifest, RowPolicy, manifest_path
from predictor.schema import RowSchema

__all__ = ["Model", "ModelInfo"]

# Nanoseconds per call: below the first the GIL is kept, because giving it back costs a busy process more than 50 us of
# waiting others; above the second a batch is worth several threads.
_HOLD_GIL_BELOW = 45_000
_SPLIT_ABOVE = 4_500_000
_WALK_NS = 30  # LightGBM's walk of one row through one tree
_Call = Callable[..., NDArray[Any]]  # rows, and whether to release the GIL
_CONTRIB_COST = 50  # one row's contributions against one row's prediction, in LightGBM


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a loaded model is, for logs, `/health` and people."""

    name: str
    version: str  # the manifest's; without one, `sha256:` and 12 hex digits
    sha256: str
    features: tuple[str, ...]  # in model order
    categories: Mapping[str, tuple[Label, ...]]  # category feature -> the labels rows may use
    classes: tuple[Label, ...]  # in output order; a binary model's probability is that of classes[1]
    n_classes: int  # values per row: 1 for regression and binary models
    n_trees: int
    objective: str | None
    output: OutputKind
    engine: str  # what computes: `native kernel (avx2)`, or LightGBM's own library
    engine_reason: str = ""  # why it is not the kernel: a name, and what is behind it


class Model:
    """
    A loaded, verified model. Make one with `Model.load`; it is immutable and safe to share among threads.

    Every prediction equals `Booster.predict` bit for bit, whether the native kernel computes it or LightGBM's own
    library (`info.engine`); contributions of the kernel equal LightGBM's to rounding. A model survives `fork`: the
    child loads LightGBM's part from memory again when it first needs it.
    """

    def __init__(
        self,
        data: bytes,
        *,
        manifest: Manifest | None,
        threads: int,
        num_iteration: int | None = None,
        digest: str | None = None,
    ) -> None:
        """Use `Model.load` (from a file) or `Model.from_bytes`."""
        parsed = parse_model_text(data)
        if manifest is not None:
            check_manifest(parsed.summary, manifest)
        self.num_iteration = num_iteration  # None: all
        if num_iteration is not None:
            parsed = parsed.first(num_iteration)
        text = parsed.summary
        labels = labels_of(text, names=text.feature_names) if manifest is None else {}
        features = manifest.features if manifest is not None else features_of(text, labels=labels)
        self.manifest = manifest
        self.features = features
        self.data = data  # the file's bytes, as they were verified
        self.threads = min(threads, available_cpus())
        self._text = text
        self._schema = RowSchema(
            features,
            manifest.policy if manifest is not None else RowPolicy(),
            ordered=ordered_categories(features, text),
            unlabelled=(
                [i for i in text.codes if text.feature_names[i] not in labels] if manifest is None else ()
            ),
        )
        self._split_above = _SPLIT_ABOVE
        self._kernel = make_kernel(parsed)
        self._start(parsed)
        self._kernel = self._checked_kernel(self._kernel, parsed)
        self.info = _info(digest or sha256_of(data), text, self._schema, manifest, self._kernel)
        _models.add(self)
        if num_iteration is None:  # golden answers are those of all trees
            self._check_golden_rows()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        manifest: Manifest | str | os.PathLike[str] | None = None,
        sha256: str | None = None,
        threads: int = 1,
        num_iteration: int | None = None,
    ) -> Model:
        """
        Load a LightGBM text model after checking its bytes, its structure, its manifest and its golden rows.

        Args:
            path: A file written by `Booster.save_model`. Never a pickle.
            manifest: The manifest or its path; default `<path>.manifest.json`.
            sha256: 64 hex digits the file must have; default the manifest's. A file that nobody
                vouches for is refused: without a manifest, pass this. Names, categories and which
                features may be missing are then what the file itself tells.
            threads: Threads that one large batch may be split over, >= 1; never more than `available_cpus()`.
            num_iteration: Use only the first of so many iterations, >= 1; default all. The whole file is verified
                first, so this loads twice.

        Raises:
            IntegrityError: The bytes are not the promised ones, or nobody promised any.
            ModelTextError: The text would crash, hang or mislead LightGBM.
            ManifestError: The manifest is malformed or describes another model.
            GoldenRowMismatch: This machine gives other numbers than the one that made the manifest.
            EngineUnavailable: LightGBM's library is not installed.
            OSError: The model file cannot be read.

        The file is read once; what was checked is what is loaded. Cost: several times LightGBM's own loading.
        """
        data = read_model(path)
        if manifest is None:
            beside = manifest_path(path)
            # One that is there and cannot be read is not passed over.
            if os.path.lexists(beside) or sha256 is None:
                manifest = Manifest.read(beside)
        elif not isinstance(manifest, Manifest):
            manifest = Manifest.read(manifest)
        return cls.from_bytes(
            data, manifest=manifest, sha256=sha256, threads=threads, num_iteration=num_iteration
        )

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        *,
        manifest: Manifest | None = None,
        sha256: str | None = None,
        threads: int = 1,
        num_iteration: int | None = None,
    ) -> Model:
        """Load a model whose bytes are at hand; checks and errors as `load`."""
        if threads < 1:
            raise ValueError("threads must be at least 1")
        promised = [
            promise for promise in (sha256, manifest.sha256 if manifest else None) if promise is not None
        ]
        if not promised:
            raise IntegrityError("nobody vouches for this model: pass a manifest or its sha256")
        digest = sha256_of(data)
        for promise in promised:
            check_digest(digest, promise)
        whole = cls(data, manifest=manifest, threads=threads, digest=digest)
        if num_iteration is None:
            return whole
        return cls(data, manifest=manifest, threads=threads, num_iteration=num_iteration, digest=digest)

    @property
    def is_linear(self) -> bool:
        """Whether leaves hold regressions, which LightGBM cannot explain."""
        return self._text.is_linear

    def predict(self, rows: Any, *, raw: bool = False) -> NDArray[np.float64]:
        """
        Predict many rows.

        Args:
            rows: Array [n, features], data frame, Arrow table, SciPy's sparse matrix (read in dense pieces), or a
                sequence of mappings or sequences; n >= 0.
            raw: Raw scores (before sigmoid, softmax, exp) instead of the objective's outputs.

        Returns:
            float64 [n], or [n, n_classes] with several outputs; what they mean is `info.output`.

        Raises:
            SchemaError: A name or cell does not fit the manifest; nothing was predicted.
        """
        if is_sparse(rows) and rows.shape[0]:
            pieces = (self._schema.encode(block) for block in dense_blocks(rows))
            return np.concatenate([self.predict_encoded(piece, raw=raw) for piece in pieces])
        return self.predict_encoded(self._schema.encode(rows), raw=raw)

    def predict_encoded(self, matrix: NDArray[np.float64], *, raw: bool = False) -> NDArray[np.float64]:
        """
        Predict rows that `encode` or `encode_row` made; shapes as `predict`.

        For batching: rows are encoded each on its own, so that a bad one fails alone, and predicted together.
        """
        return self._shaped(self._run(matrix, RAW if raw else NORMAL, self._text.n_outputs))

    def predict_row(self, row: Any) -> NDArray[np.float64]:
        """
        Predict one row by the shortest way.

        Args:
            row: A mapping by name, a sequence in manifest order, an array [features], or a table of one row.

        Returns:
            float64 [n_classes], always one-dimensional; bit for bit the row of `predict`.

        Raises:
            SchemaError: A name or cell does not fit the manifest.
        """
        if self._plain_row is not None:
            answer: NDArray[np.float64] | None = self._plain_row(row)
            if answer is None:  # a cell that needs the schema's word
                answer = self._encoded_row(self._schema.encode_row(row))
            return answer
        values = self._schema.encode_row(row)
        try:
            call = self._local.call
        except AttributeError:
            call = self._new_row_call()
        return cast("NDArray[np.float64]", call(values))

    def predict_proba(self, rows: Any) -> NDArray[np.float64]:
        """
        Predict the probability of each class, also where LightGBM gives one number for two classes.

        Returns:
            float64 [n, classes], at least two columns, in the order of `info.classes` (or 0, 1, ... where it is empty).
            Those of `one_vs_all` do not sum to 1.

        Raises:
            SchemaError: As `predict`.
            Unsupported: The model is no classifier, or gives raw scores of a loss of its own.
        """
        return self._probabilities(self._schema.encode(rows))

    def predict_label(self, rows: Any) -> NDArray[Any]:
        """
        Predict the most probable class of each row; of equal ones the first.

        Returns:
            [n] labels of `info.classes`, or positions 0, 1, ... where it is empty.

        Raises:
            SchemaError: As `predict`, or a row whose answer is not a number.
            Unsupported: As `predict_proba`; several raw scores with class names are compared as they are.
        """
        matrix = self._schema.encode(rows)
        if self._text.output == "raw" and self._text.n_outputs > 1 and self.info.classes:
            scores = self._run(matrix, RAW, self._text.n_outputs)
        else:
            scores = self._probabilities(matrix)
        return most_probable(scores, self.info.classes)

    def _probabilities(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._text.output in ("value", "raw"):
            raise Unsupported(
                f"the answers of this model are {self._text.output}, not probabilities: use predict"
            )
        return per_class(self._run(matrix, NORMAL, self._text.n_outputs))

    def staged(
        self, rows: Any, iterations: Iterable[int], *, raw: bool = False
    ) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """
        Yield for each of *iterations*, >= 1, that number and what the model predicts after so many iterations.

        Shapes and errors as `predict`. Cost: one load and one prediction for each.
        """
        matrix, parsed = self._schema.encode(rows), self._parsed()
        for count in iterations:
            shorter = Booster(parsed.first(count).lightgbm_text(), width=self._schema.width)
            kind, per_row = RAW if raw else NORMAL, self._text.n_outputs
            yield count, self._shaped(shorter.predict(matrix, kind, per_row=per_row))

    def leaves(self, rows: Any) -> NDArray[np.int32]:
        """Return int32 [n, trees]: the leaf each row reaches in each tree; rows and errors as `predict`."""
        return self._run(self._schema.encode(rows), LEAF, self._text.n_trees).astype(np.int32, copy=False)

    def explain(self, rows: Any) -> Explanation:
        """
        Return SHAP contributions of each feature to each raw score; rows and errors as `predict`.

        One mapping is one row, explained as a batch of one.

        Raises:
            Unsupported: A model with linear leaves, for which LightGBM has no contributions; or one that
                was stripped of the row counts they are weighed by.

        The kernel's shares equal LightGBM's to 1e-12 of the largest one. Cost: about 50 to 100 times `predict` per row.
        """
        self._refuse_linear()
        if isinstance(rows, Mapping):
            rows = [rows]
        matrix = self._schema.encode(rows)
        outputs, width = self._text.n_outputs, self._schema.width
        flat = self._run(matrix, CONTRIB, outputs * (width + 1))
        # LightGBM concatenates per output: one share per feature, then the expected value.
        shaped = flat.reshape(len(matrix), outputs, width + 1)
        if not np.isfinite(shaped).all():
            raise Unsupported(
                "contributions are not finite: the model lacks its leaf_count and internal_count"
            )
        if outputs == 1:
            shaped = shaped[:, 0]
        return Explanation(shaped[..., :-1], shaped[..., -1], self.info.features, self.info.classes)

    def encode(self, rows: Any) -> NDArray[np.float64]:
        """Return float64 [n, features] as LightGBM will see it; rows and errors as `predict`."""
        return self._schema.encode(rows)

    def encode_columns(self, columns: Mapping[Any, Sequence[Any]]) -> NDArray[np.float64]:
        """
        Return float64 [n, features] of columns by name, such as the tensors of a request; errors as `predict`.

        For `predict_encoded`. Each column is a list or a one-dimensional array, read by the same policy as rows.
        """
        return self._schema.encode_columns(columns)

    def encode_row(self, row: Any) -> tuple[float, ...]:
        """Return one row's numbers as LightGBM will see them; row and errors as `predict_row`."""
        return tuple(self._schema.encode_row(row))

    def importances(self) -> dict[str, tuple[int, float]]:
        """Return for each feature how often trees split on it, and the total gain of those splits; reads the file."""
        gains = self._parsed().split_gains()
        pairs = zip(self._text.split_counts, gains, strict=True)
        return dict(zip(self.info.features, pairs, strict=True))

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Model holds native memory and cannot be pickled; call Model.load in the other process"
        )

    def __repr__(self) -> str:
        info = self.info
        return f"<Model {info.name} {info.version}: {info.n_trees} trees, {len(info.features)} features>"

    def _start(self, parsed: ParsedModel) -> None:
        """Load LightGBM's part; again in a forked child, where a thread that is gone may hold its locks."""
        outputs = self._text.n_outputs
        try:
            booster = Booster(parsed.lightgbm_text(), width=self._schema.width)
            if not self.is_linear and not (isinstance(self._kernel, Kernel) and self._kernel.explains):
                _fill_tables(booster, outputs)
        except EngineError as error:  # nothing known passes the checker and fails here
            raise ModelTextError(str(error)) from error
        self._booster = booster
        self._local = threading.local()
        self._pool: ThreadPoolExecutor | None = None
        self._pool_guard = threading.Lock()
        self._is_stale = False

    def _parsed(self) -> ParsedModel:
        parsed = parse_model_text(self.data)
        return parsed if self.num_iteration is None else parsed.first(self.num_iteration)

    def _new_row_call(self) -> RowCall:
        self._refresh()
        self._local.call = call = RowCall(
            self._booster,
            per_row=self._text.n_outputs,
            hold_gil=self._text.n_trees * _WALK_NS < _HOLD_GIL_BELOW,
        )
        return call

    def _run(self, matrix: NDArray[np.float64], kind: int, per_row: int) -> NDArray[Any]:
        """Ask the engine for *per_row* numbers of *kind* for each row, in several threads where that pays."""
        kernel = self._kernel
        if isinstance(kernel, Kernel) and (kind != CONTRIB or kernel.explains):
            cost = kernel.cost(kind)
            answer: _Call = partial(kernel.predict, kind=kind)
        else:
            self._refresh()
            booster = self._booster
            cost = self._text.n_trees * _WALK_NS * (_CONTRIB_COST if kind == CONTRIB else 1)

            def answer(rows: NDArray[np.float64], *, release: bool) -> NDArray[Any]:
                return booster.predict(rows, kind, per_row=per_row, hold_gil=not release)

        step = max(1, math.ceil(self._split_above / (2 * cost)))
        if self.threads > 1 and len(matrix) >= 2 * step:
            return self._split(matrix, answer, step)
        return answer(matrix, release=len(matrix) * cost >= _HOLD_GIL_BELOW)

    def _split(self, matrix: NDArray[np.float64], answer: _Call, step: int) -> NDArray[Any]:
        """Share one batch among threads; rows are independent, so the bits do not depend on the cut."""
        with self._pool_guard:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="predictor")
            pool = self._pool
        pieces = np.array_split(matrix, min(self.threads, len(matrix) // step))
        return np.concatenate(list(pool.map(partial(answer, release=True), pieces)))

    def _checked_kernel(self, kernel: Kernel | Refusal, parsed: ParsedModel) -> Kernel | Refusal:
        """Return the kernel, if it can serve this model and gives LightGBM's numbers here; else why not."""
        self._plain_row: Callable[[Any], NDArray[np.float64] | None] | None = None
        if isinstance(kernel, Refusal):
            return kernel
        if not agrees(kernel, self._booster, parsed):
            if kernel.explains:
                _fill_tables(self._booster, self._text.n_outputs)
            return Refusal("self_check")
        kernel.bind(self._schema.cells, release=kernel.cost(NORMAL) >= _HOLD_GIL_BELOW)
        self._plain_row, self._encoded_row = kernel.row, kernel.numbers
        return kernel

    def _refresh(self) -> None:
        if self._is_stale:
            with _fork_guard:
                if self._is_stale:
                    self._start(self._parsed())

    def _forget(self) -> None:
        """
        In a forked child: leave the parent's native objects alone, for ever. The kernel is memory alone, and stays.

        Even freeing them could wait for a thread that did not survive the fork; their pages are shared anyway.
        """
        _abandoned.append((self._booster, self._local))
        self._is_stale = True
        self._local = threading.local()
        self._pool, self._pool_guard = None, threading.Lock()  # its threads did not survive either

    def _shaped(self, answers: NDArray[np.float64]) -> NDArray[np.float64]:
        return answers[:, 0] if self._text.n_outputs == 1 else answers

    def _refuse_linear(self) -> None:
        if self.is_linear:
            raise Unsupported("LightGBM has no contributions for linear trees; explain another model")

    def _check_golden_rows(self) -> None:
        golden = self.manifest.golden if self.manifest is not None else ()
        if golden:
            self.check_golden([g.row for g in golden], [g.raw for g in golden], [g.output for g in golden])

    def check_golden(self, rows: Any, raw: Any, output: Any = None) -> None:
        """
        Refuse unless *rows* give *raw* scores [n, n_classes] bit for bit, and *output* within 4 ulp where given.

        Raises:
            GoldenRowMismatch: Another number; the batch way and the one-row way are both checked.
            ManifestError: A golden row does not fit the manifest's own features.
        """
        try:
            matrix = self._schema.encode(rows)
            singles = np.array([self.predict_row(row) for row in rows])
        except ValueError as error:
            raise ManifestError(f"golden rows do not fit the manifest: {error}") from error
        shape = (len(matrix), self._text.n_outputs)
        if shape[0] == 0:
            return
        batch = self._run(matrix, NORMAL, shape[1])
        check_bits(
            "raw scores", self._run(matrix, RAW, shape[1]), np.array(raw, dtype=np.float64).reshape(shape)
        )
        check_bits("one row against batch", singles, batch)
        if output is not None:
            check_ulps("outputs", batch, np.array(output, dtype=np.float64).reshape(shape))
        if self._text.output == "probabilities" and not np.allclose(
            batch.sum(axis=1), 1.0, rtol=0, atol=1e-12
        ):
            raise ModelError("probabilities do not sum to 1; the model file and its objective do not match")


def _fill_tables(booster: Booster, outputs: int) -> None:
    """Ask for contributions once: the first call fills tables inside the booster, and must not be in a race."""
    booster.predict(np.zeros((1, booster.width)), CONTRIB, per_row=outputs * (booster.width + 1))


def _info(
    digest: str, text: ModelText, schema: RowSchema, manifest: Manifest | None, kernel: Kernel | Refusal
) -> ModelInfo:
    return ModelInfo(
        name=manifest.name if manifest is not None else "unnamed",
        version=manifest.version if manifest is not None else f"sha256:{digest[:12]}",
        sha256=digest,
        features=schema.names,
        categories={f.name: f.categories for f in schema.features if f.categories is not None},
        classes=manifest.classes if manifest is not None else (),
        n_classes=text.n_outputs,
        n_trees=text.n_trees,
        objective=text.objective,
        output=text.output,
        engine=engine_name() if isinstance(kernel, Refusal) else f"native kernel ({kernel.level})",
        engine_reason=f"{kernel.name}: {kernel.reason}" if isinstance(kernel, Refusal) else "",
    )


_models: weakref.WeakSet[Model] = weakref.WeakSet()
_fork_guard = threading.Lock()
_abandoned: list[object] = []


def _after_fork() -> None:
    global _fork_guard  # noqa: PLW0603  the parent's lock may be held for ever in the child
    _fork_guard = threading.Lock()
    for model in list(_models):
        model._forget()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
