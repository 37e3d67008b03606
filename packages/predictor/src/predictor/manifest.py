"""
The manifest: a JSON file beside the model file (`<model>.manifest.json`) that says what the model file does not.

A LightGBM text file holds the trees. It does not say which SHA-256 it should have, what its classes are called, which
features may be missing, or which numbers it gave on the machine that made it. The manifest does, and loading a model
checks all of it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool, ValidationError, model_validator

from predictor._objectives import OutputKind
from predictor._system import read_at_most
from predictor.errors import ManifestError

__all__ = [
    "Feature",
    "GoldenRow",
    "Label",
    "Manifest",
    "Metric",
    "Reference",
    "RowPolicy",
    "manifest_path",
    "named_members",
]

_MAX_BYTES = 1 << 26  # 64 MiB; a manifest of a thousand features and golden rows has about 1 MiB

Label = str | int | float
"""A class or category label. JSON distinguishes text, whole numbers and fractions."""

Cell = str | int | float | None
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Frozen(BaseModel):
    # Pydantic before 2.10 claims every name that begins with "model_".
    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )


class Reference(_Frozen):
    """The distribution of a feature or an output over the sample rows; drift is measured against it."""

    count: int = Field(ge=1, description="rows, null ones included")
    null_share: Finite = Field(ge=0, le=1)
    edges: tuple[Finite, ...] = Field(
        default=(),
        description="inner bin edges, rising; a value v falls in bin k where edges[k-1] < v <= edges[k]",
    )
    shares: tuple[Finite, ...] = Field(description="share of the non-null rows per bin, or per category code")

    @model_validator(mode="after")
    def _edges_rise(self) -> Self:
        if sorted(set(self.edges)) != list(self.edges):
            raise ValueError("the edges of a reference must rise")
        return self


class Feature(_Frozen):
    """One column, in model order."""

    name: str = Field(min_length=1, description="the name rows use")
    model_name: str = Field(min_length=1, description="LightGBM's own name, which may have lost its spaces")
    kind: Literal["number", "integer", "category"] = "number"
    nullable: bool = False
    min: Finite | None = Field(default=None, description="smallest value observed in the sample rows")
    max: Finite | None = Field(default=None, description="largest value observed in the sample rows")
    categories: tuple[Label, ...] | None = Field(default=None, description="labels that rows may use")
    codes: tuple[int, ...] | None = Field(
        default=None, description="the code LightGBM learned for each label"
    )
    reference: Reference | None = None

    @model_validator(mode="after")
    def _categories_have_codes(self) -> Self:
        if self.kind == "category":
            if self.categories is None or self.codes is None or len(self.categories) != len(self.codes):
                raise ValueError("a category feature needs one code for each label")
            if len(set(self.categories)) != len(self.categories) or len(set(self.codes)) != len(self.codes):
                raise ValueError("labels and codes must not repeat")
            if any(not 0 <= code < 2**31 for code in self.codes):
                raise ValueError("codes must be whole numbers from 0 to 2147483647")
        elif self.categories is not None or self.codes is not None:
            raise ValueError("only a category feature has categories: remove them, or set its kind")
        if self.reference is not None:
            bins = len(self.codes) if self.codes is not None else len(self.reference.edges) + 1
            if len(self.reference.shares) != bins:
                raise ValueError(
                    f"the reference needs one share per bin: {bins}, not {len(self.reference.shares)}"
                )
        return self


class RowPolicy(_Frozen):
    """
    What to do with rows that do not fit. The default refuses them; any other choice is then recorded in the manifest.

    `DriftMonitor` counts nulls, unseen categories and values out of range, also where they are allowed here.
    """

    missing: Literal["refuse", "null"] = Field(
        default="refuse", description="a feature the row does not name"
    )
    extra: Literal["refuse", "ignore"] = Field(default="refuse", description="a name the model does not know")
    null: Literal["refuse", "allow"] = Field(default="refuse", description="None or NaN where not nullable")
    infinite: Literal["refuse", "allow"] = "refuse"
    unseen: Literal["refuse", "allow"] = Field(
        default="refuse", description="a category that training did not have; LightGBM sends it right"
    )
    boolean: Literal["refuse", "number"] = Field(default="refuse", description="True and False as 1 and 0")
    large_integer: Literal["refuse", "round"] = Field(
        default="refuse", description="a whole number that no float64 equals"
    )


class GoldenRow(_Frozen):
    """A row and the exact numbers the model gave for it when the manifest was made."""

    row: tuple[Cell, ...] = Field(description="in manifest order; null for a missing value")
    raw: tuple[Finite, ...] = Field(description="raw scores, compared bit for bit")
    output: tuple[Finite, ...] = Field(
        description="transformed outputs, compared within 4 ulp (libm differs by CPU)"
    )


class Metric(_Frozen):
    """A quality metric of the model, and of a baseline predictor without skill on the same rows."""

    model: Finite
    baseline: Finite | None = None


class Manifest(_Frozen):
    """What is known about one model file; see the module's docstring."""

    schema_version: Literal[1] = 1
    name: str = Field(min_length=1, max_length=200)
    version: str = Field(min_length=1, max_length=200)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the model file's bytes")
    lightgbm: str = Field(description="LightGBM's version when the golden rows were recorded")
    objective: str | None = None
    output: OutputKind
    n_trees: int = Field(ge=1)
    n_outputs: int = Field(ge=1, description="values per row")
    classes: tuple[StrictBool | Label, ...] = Field(
        default=(), description="labels, in the order of the outputs"
    )
    features: tuple[Feature, ...] = Field(min_length=1)
    policy: RowPolicy = RowPolicy()
    golden: tuple[GoldenRow, ...] = ()
    answers: tuple[Reference, ...] = Field(
        default=(), description="how each output was distributed over the sample rows"
    )
    provenance: Mapping[str, JsonValue] = Field(
        default_factory=dict, description="data, code, seed, time span"
    )
    metrics: Mapping[str, Metric] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        names = [feature.name for feature in self.features]
        if len(set(names)) != len(names):
            raise ValueError("feature names must not repeat")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("class labels must not repeat")
        # With a custom loss, a classifier gives raw scores: one score for two classes, or one per class.
        own_loss = max(2, self.n_outputs) if self.objective is None else 0
        expected = {
            "probability": 2,
            "probabilities": self.n_outputs,
            "one_vs_all": self.n_outputs,
            "raw": own_loss,
        }
        if self.classes and len(self.classes) != expected.get(self.output, 0):
            raise ValueError(
                f"{len(self.classes)} class labels do not fit {self.n_outputs} {self.output} outputs;"
                " give one for each class"
            )
        if self.answers and len(self.answers) != self.n_outputs:
            raise ValueError(
                f"{len(self.answers)} distributions of answers for {self.n_outputs} outputs; give one for each"
            )
        if any(len(answers.shares) != len(answers.edges) + 1 for answers in self.answers):
            raise ValueError("a distribution of answers needs one share per bin")
        for golden in self.golden:
            if (len(golden.row), len(golden.raw), len(golden.output)) != (
                len(names),
                self.n_outputs,
                self.n_outputs,
            ):
                raise ValueError(
                    "a golden row does not fit the features or the outputs; make the manifest again"
                )
        return self

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """
        Read and check a manifest file.

        Raises:
            ManifestError: The file is absent or not JSON, or a member is wrong or there twice; the message names it.
        """
        try:
            data = read_at_most(path, _MAX_BYTES)
        except OSError as error:
            raise ManifestError(
                f"no manifest at {Path(path).name!r} ({error.strerror}); make one with 'predictor manifest'"
            ) from error
        if data is None:
            raise ManifestError(
                f"{Path(path).name!r} has more than {_MAX_BYTES} bytes; make the manifest again with fewer golden rows"
            )
        return cls.from_bytes(data, name=Path(path).name)

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str) -> Manifest:
        """
        Check the bytes of a manifest; errors call it *name*.

        Raises:
            ManifestError: As `read`.
        """
        _refuse_repeated(data, name)
        with named_members(name):
            return cls.model_validate_json(data)

    def write(self, path: str | os.PathLike[str]) -> None:
        """
        Write the manifest as indented JSON (without indents if that would be too large), atomically.

        A reader sees the old file or the new one, never a part.

        Raises:
            ManifestError: It would be larger than `read` accepts; record fewer golden rows.
            OSError: The file cannot be written.
        """
        target = Path(path)
        text = self.model_dump_json(indent=1, exclude_none=True) + "\n"
        if len(text.encode()) > _MAX_BYTES:
            text = self.model_dump_json(exclude_none=True) + "\n"
        if len(text.encode()) > _MAX_BYTES:
            raise ManifestError(
                f"the manifest would have {len(text.encode())} bytes, more than {_MAX_BYTES}; record fewer golden rows"
            )
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=target.parent, delete=False) as file:
            try:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).chmod(0o644)
                Path(file.name).replace(target)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise


def _refuse_repeated(data: bytes, source: str) -> None:
    """Refuse an object with two members of one name (RFC 8259, 4): parsers differ in which of them they use."""

    def once(pairs: list[tuple[str, object]]) -> None:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            raise ManifestError(f"{source}: {repeated} is there twice; keep one of them")

    with suppress(ValueError, RecursionError):  # data that is not JSON is refused later, by pydantic
        json.loads(data, object_pairs_hook=once)


@contextmanager
def named_members(source: str) -> Iterator[None]:
    """Turn a pydantic `ValidationError` into a `ManifestError` that names *source* and the wrong member."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "manifest"
        raise ManifestError(f"{source}: {where}: {first['msg']}") from error


def manifest_path(model: str | os.PathLike[str]) -> Path:
    """Return where the manifest of *model* is expected: the whole file name, then `.manifest.json`."""
    path = Path(model)
    return path.with_name(path.name + ".manifest.json")
