"""A verified LightGBM model: load it once, predict from any thread, get LightGBM's numbers or a typed error."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from predictor._features import category_reads, features_of, labels_of
from predictor._info import ModelInfo, model_info
from predictor._model_file import ParsedModel, parse_model_text, read_model
from predictor._native import CONTRIB, LEAF, NORMAL, RAW, Booster
from predictor._objectives import most_probable, per_class
from predictor._runtime import Runtime
from predictor._system import available_cpus
from predictor._tables import dense_blocks, is_sparse
from predictor.errors import (
    IntegrityError,
    ManifestError,
    ModelError,
    Unsupported,
)
from predictor.explain import Explanation, check_sums
from predictor.integrity import check_bits, check_digest, check_manifest, check_ulps, sha256_of
from predictor.manifest import Manifest, RowPolicy, manifest_path
from predictor.schema import RowSchema

__all__ = ["Model", "ModelInfo"]


class Model:
    """
    A loaded, verified model. Make one with `Model.load`; it is immutable and safe to share among threads.

    Every prediction equals `Booster.predict` bit for bit, whether the native kernel or LightGBM's library computes it
    (`info.engine` says which). Contributions of the kernel equal LightGBM's up to rounding. A model can be used after
    `fork`: the child loads LightGBM's part again, from memory, when it first needs it.
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
        self._text = text
        self._schema = RowSchema(
            features,
            manifest.policy if manifest is not None else RowPolicy(),
            **category_reads(features, text),
            unlabelled=(
                [i for i in text.codes if text.feature_names[i] not in labels] if manifest is None else ()
            ),
        )
        self._parse = _parser(data, num_iteration)
        self._runtime = Runtime(
            parsed,
            parse=self._parse,
            cells=self._schema.cells,
            takes_codes=self._schema.takes_codes,
            threads=min(threads, available_cpus()),
        )
        self._plain_row, self._plain_matrix = self._runtime.plain_row, self._runtime.plain_matrix
        self.info: ModelInfo = model_info(
            digest or sha256_of(data), text, self._schema, manifest, self._runtime.kernel
        )
        if num_iteration is None:  # golden rows hold the answers of all trees
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
            sha256: The SHA-256 that the file must have, 64 hex digits; default the manifest's. Required without a
                manifest. Then names, categories and nullable features are derived from the model file.
            threads: The most threads to split one large batch over, >= 1; never more than `available_cpus()`.
            num_iteration: Use only this many iterations from the start, >= 1; default all. The whole file is verified
                first, so the model is loaded twice.

        Raises:
            IntegrityError: The SHA-256 is not the expected one, or neither a manifest nor *sha256* gives one.
            ModelTextError: The text would crash, hang or mislead LightGBM.
            ManifestError: The manifest is malformed or describes another model.
            GoldenRowMismatch: This machine gives other numbers than the one that made the manifest.
            EngineUnavailable: LightGBM's library is not installed.
            OSError: The model file cannot be read.

        The file is read once, so the bytes that were checked are those that are loaded. Cost: several times that of
        loading in LightGBM.
        """
        data = read_model(path)
        if manifest is None:
            beside = manifest_path(path)
            # A manifest that exists but cannot be read is an error, also if sha256 is given.
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
        """Load a model from the bytes of its file; checks and errors as `load`."""
        if threads < 1:
            raise ValueError("threads must be at least 1")
        promised = [
            promise for promise in (sha256, manifest.sha256 if manifest else None) if promise is not None
        ]
        if not promised:
            raise IntegrityError("nobody vouches for this model: pass a manifest, or the file's sha256")
        digest = sha256_of(data)
        for promise in promised:
            check_digest(digest, promise)
        whole = cls(data, manifest=manifest, threads=threads, digest=digest)
        if num_iteration is None:
            return whole
        return cls(data, manifest=manifest, threads=threads, num_iteration=num_iteration, digest=digest)

    @property
    def threads(self) -> int:
        """The most threads over which one large batch is split."""
        return self._runtime.threads

    @property
    def is_linear(self) -> bool:
        """Whether the leaves hold linear models, for which LightGBM has no contributions."""
        return self._text.is_linear

    def predict(self, rows: Any, *, raw: bool = False) -> NDArray[np.float64]:
        """
        Predict many rows.

        Args:
            rows: Array [n, features], data frame, Arrow table, SciPy sparse matrix (read in dense pieces), or a
                sequence of mappings or sequences; n >= 0.
            raw: Return raw scores (before sigmoid, softmax or exp) instead of the objective's outputs.

        Returns:
            float64 [n], or [n, n_classes] with several outputs; `info.output` says what they mean.

        Raises:
            SchemaError: A name or cell does not fit the manifest; nothing was predicted.
        """
        if self._plain_matrix is not None and not raw:
            answers = self._plain_matrix(rows)
            if answers is not None:
                return answers
        if is_sparse(rows) and rows.shape[0]:
            pieces = (self._schema.encode(block) for block in dense_blocks(rows))
            return np.concatenate([self.predict_encoded(piece, raw=raw) for piece in pieces])
        return self.predict_encoded(self._schema.encode(rows), raw=raw)

    def predict_encoded(self, matrix: NDArray[np.float64], *, raw: bool = False) -> NDArray[np.float64]:
        """
        Predict rows that `encode` or `encode_row` made; shapes as `predict`.

        For batching: encode each row separately, so that a bad row fails alone, then predict all together.
        """
        return self._shaped(self._runtime.run(matrix, RAW if raw else NORMAL, self._text.n_outputs))

    def predict_row(self, row: Any) -> NDArray[np.float64]:
        """
        Predict one row with the least overhead.

        Args:
            row: A mapping by name, a sequence in manifest order, an array [features], or a table or sparse matrix
                of one row.

        Returns:
            float64 [n_classes], always one-dimensional; equal bit for bit to the row of `predict`.

        Raises:
            SchemaError: A name or cell does not fit the manifest.
        """
        if self._plain_row is not None:
            answer: NDArray[np.float64] | None = self._plain_row(row)
            if answer is None:  # a cell is not plain: the schema converts or refuses it
                answer = self._runtime.row(self._schema.encode_row(row))
            return answer
        return self._runtime.row(self._schema.encode_row(row))

    def predict_proba(self, rows: Any) -> NDArray[np.float64]:
        """
        Predict the probability of each class; for a binary model of both classes, although LightGBM gives one number.

        Returns:
            float64 [n, classes], at least two columns, in the order of `info.classes` (0, 1, ... if that is empty).
            Those of `one_vs_all` do not sum to 1.

        Raises:
            SchemaError: As `predict`.
            Unsupported: The model is not a classifier, or was trained with a custom loss and gives raw scores.
        """
        return self._probabilities(self._schema.encode(rows))

    def predict_label(self, rows: Any) -> NDArray[Any]:
        """
        Predict the most probable class of each row; the first of equally probable ones.

        Returns:
            [n] labels of `info.classes`, or positions 0, 1, ... if that is empty.

        Raises:
            SchemaError: As `predict`, or an answer is not finite.
            Unsupported: As `predict_proba`, but raw scores of several named classes are allowed: the largest one wins.
        """
        matrix = self._schema.encode(rows)
        if self._text.output == "raw" and self._text.n_outputs > 1 and self.info.classes:
            scores = self._runtime.run(matrix, RAW, self._text.n_outputs)
        else:
            scores = self._probabilities(matrix)
        return most_probable(scores, self.info.classes)

    def _probabilities(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._text.output in ("value", "raw"):
            raise Unsupported(
                f"the answers of this model are {self._text.output}, not probabilities: use predict"
            )
        return per_class(self._runtime.run(matrix, NORMAL, self._text.n_outputs))

    def staged(
        self, rows: Any, iterations: Iterable[int], *, raw: bool = False
    ) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """
        Yield for each of *iterations*, >= 1, that number and the predictions of that many iterations from the start.

        Shapes and errors as `predict`. Cost: one load and one prediction per number.
        """
        matrix, parsed = self._schema.encode(rows), self._parse()
        for count in iterations:
            shorter = Booster(parsed.first(count).lightgbm_text(), width=self._schema.width)
            kind, per_row = RAW if raw else NORMAL, self._text.n_outputs
            yield count, self._shaped(shorter.predict(matrix, kind, per_row=per_row))

    def leaves(self, rows: Any) -> NDArray[np.int32]:
        """Return int32 [n, trees]: the number of the leaf that each row reaches in each tree; errors as `predict`."""
        return self._runtime.run(self._schema.encode(rows), LEAF, self._text.n_trees).astype(
            np.int32, copy=False
        )

    def explain(self, rows: Any) -> Explanation:
        """
        Return the SHAP contributions of each feature to each raw score; rows and errors as `predict`.

        A single mapping is one row.

        Raises:
            Unsupported: The model has linear leaves, for which LightGBM has no contributions; or its file lacks the
                row counts of nodes and leaves, which contributions need; or LightGBM computes the contributions, and
                its rounding errors are too large, as on branches that test more than about 20 different features.

        The kernel's contributions equal LightGBM's within 1e-12 of the largest one, and stay as exact on such branches.
        Cost: about 50 to 100 times `predict` per row.
        """
        self._refuse_linear()
        if isinstance(rows, Mapping) and not is_sparse(rows):  # SciPy's DOK matrix is a mapping too
            rows = [rows]
        matrix = self._schema.encode(rows)
        outputs, width = self._text.n_outputs, self._schema.width
        flat = self._runtime.run(matrix, CONTRIB, outputs * (width + 1))
        # LightGBM's order, per output: one contribution per feature, then the expected value.
        shaped = flat.reshape(len(matrix), outputs, width + 1)
        check_sums(shaped, self._runtime.run(matrix, RAW, outputs))
        if outputs == 1:
            shaped = shaped[:, 0]
        return Explanation(shaped[..., :-1], shaped[..., -1], self.info.features, self.info.classes)

    def encode(self, rows: Any) -> NDArray[np.float64]:
        """Return *rows* as the float64 [n, features] that LightGBM gets; rows and errors as `predict`."""
        return self._schema.encode(rows)

    def encode_columns(self, columns: Mapping[Any, Sequence[Any]]) -> NDArray[np.float64]:
        """
        Return columns by name, such as a request's tensors, as float64 [n, features]; errors as `predict`.

        For `predict_encoded`. Each column is a list or a one-dimensional array; the policy for rows applies.
        """
        return self._schema.encode_columns(columns)

    def encode_row(self, row: Any) -> tuple[float, ...]:
        """Return one row as the numbers that LightGBM gets; row and errors as `predict_row`."""
        return tuple(self._schema.encode_row(row))

    def importances(self) -> dict[str, tuple[int, float]]:
        """
        Return for each feature the number of its splits and their total gain; parses the model text again.

        LightGBM's own count, `feature_importance`, leaves out splits whose gain in the file is 0.
        """
        gains = self._parse().split_gains()
        pairs = zip(self._text.split_counts, gains, strict=True)
        return dict(zip(self.info.features, pairs, strict=True))

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Model holds native memory and cannot be pickled; call Model.load in the other process"
        )

    def __repr__(self) -> str:
        info = self.info
        return f"<Model {info.name} {info.version}: {info.n_trees} trees, {len(info.features)} features>"

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
        Refuse unless *rows* give the *raw* scores [n, n_classes] bit for bit, and *output*, if given, within 4 ulp.

        Raises:
            GoldenRowMismatch: A number differs, or single rows give other numbers than the batch.
            ManifestError: A golden row does not fit the manifest's own features, or *raw* the rows and outputs.
        """
        try:
            matrix = self._schema.encode(rows)
            singles = np.array([self.predict_row(row) for row in rows])
            shape = (len(matrix), self._text.n_outputs)
            scores = np.array(raw, dtype=np.float64).reshape(shape)
        except ValueError as error:
            raise ManifestError(f"golden rows do not fit the manifest: {error}") from error
        if shape[0] == 0:
            return
        batch = self._runtime.run(matrix, NORMAL, shape[1])
        check_bits("raw scores", self._runtime.run(matrix, RAW, shape[1]), scores)
        check_bits("one row against batch", singles, batch)
        if output is not None:
            check_ulps("outputs", batch, np.array(output, dtype=np.float64).reshape(shape))
        if self._text.output == "probabilities" and not np.allclose(
            batch.sum(axis=1), 1.0, rtol=0, atol=1e-12
        ):
            raise ModelError(
                "probabilities do not sum to 1: the trees do not match the objective; save it again from training"
            )


def _parser(data: bytes, num_iteration: int | None) -> Callable[[], ParsedModel]:
    """Return a function that parses the checked bytes again."""

    def parse() -> ParsedModel:
        parsed = parse_model_text(data)
        return parsed if num_iteration is None else parsed.first(num_iteration)

    return parse
