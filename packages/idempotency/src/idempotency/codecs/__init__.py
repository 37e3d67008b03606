"""
Codecs: encode the value of a decorated function as JSON for the record, and decode it for retries.

A codec returns exactly the value that it was given, or refuses it: at decoration if the annotation shows the problem,
otherwise when it encodes the value. A record cannot run code, because no codec uses pickle.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any, Final, Protocol, TypeVar

from idempotency._core.annotations import Plan, json_misfit, plan, show
from idempotency._core.json import require_exact
from idempotency._runtime.extras import missing

__all__ = ["JSON", "Codec", "DataclassCodec", "PydanticCodec"]

T = TypeVar("T")


class Codec(Protocol[T]):
    """An encoder and a decoder for one return type; each reverses the other."""

    def bind(self, returns: Any) -> Codec[T]:
        """
        The codec for a function with this return annotation.

        Args:
            returns: The resolved annotation; `inspect.Signature.empty` if there is none or it cannot be resolved.
        Raises:
            TypeError: Decoded values of that type would differ from the originals.
        """
        ...

    def encode(self, value: T) -> Any:
        """
        *value* made of JSON types only.

        Raises:
            TypeError, ValueError: The decoded value would differ. The call is then recorded as done and not kept.
        """
        ...

    def decode(self, stored: Any) -> T:
        """
        Returns the value that `encode` was given.

        Raises:
            Exception: Any exception: *stored* does not fit any more. The retry is refused, and nothing runs.
        """
        ...


class _JSON:
    """JSON types unchanged: None, bool, int, finite float, str, and lists and dicts (with str keys) of them."""

    def bind(self, returns: Any) -> Codec[Any]:
        """See `Codec.bind`."""
        misfit = json_misfit(returns)
        if misfit is not None:
            raise TypeError(
                f"{misfit} does not come back from JSON as it was; return JSON types, or pass "
                "codec=DataclassCodec() or codec=PydanticCodec() (idempotency.codecs)"
            )
        return self

    def encode(self, value: Any) -> Any:
        """See `Codec.encode`. Refused: tuples, subclasses of JSON types, NaN, infinities, keys that are not str."""
        require_exact(value)
        return value

    def decode(self, stored: Any) -> Any:
        """See `Codec.decode`."""
        return stored

    def __repr__(self) -> str:
        return "JSON"


JSON: Final[Codec[Any]] = _JSON()
"""The default codec: values of JSON types, exactly."""


class DataclassCodec:
    """
    Dataclasses whose fields are JSON types, dataclasses, or lists, dicts (with str keys) and Optionals of these.

    It needs only the standard library. Fields that are not init parameters, and unions of two classes, are refused at
    decoration.

    Args:
        kind: The type, if the function has no return annotation.
    """

    def __init__(self, kind: Any = inspect.Signature.empty) -> None:
        self._kind = kind
        self._plan: Plan | None = None

    def bind(self, returns: Any) -> DataclassCodec:
        """See `Codec.bind`."""
        bound = DataclassCodec(_agreed("DataclassCodec", self._kind, returns))
        bound._plan = plan(bound._kind)
        return bound

    def encode(self, value: Any) -> Any:
        """See `Codec.encode`. Refuses a value that the `__post_init__` of its class would change during decoding."""
        assert self._plan is not None, "bind() comes first"
        stored = self._plan.encode(value)
        _require_same(self._plan.decode(stored), value)
        return stored

    def decode(self, stored: Any) -> Any:
        """See `Codec.decode`."""
        assert self._plan is not None, "bind() comes first"
        return self._plan.decode(stored)


class PydanticCodec:
    """
    All types of pydantic: models, dataclasses, typed dicts, tuples, unions, enums, dates, Decimal, UUID, bytes.

    A model is recorded by the names of its fields, without aliases and custom serializers, and decoded without its
    validators, so it comes back unchanged. Bytes become base64. Refused at decoration: a secret, which would be masked;
    an excluded field; a type that JSON cannot express. Every value is decoded again before it is recorded, and refused
    if the result differs (NaN, or a subclass of the annotated type). A time zone is kept as its offset. Needs pydantic
    2.7 (the `pydantic` extra).

    Args:
        kind: The type, if the function has no return annotation.
    """

    def __init__(self, kind: Any = inspect.Signature.empty) -> None:
        self._kind = kind
        self._plan: Plan | None = None

    def bind(self, returns: Any) -> PydanticCodec:
        """See `Codec.bind`."""
        try:
            from pydantic import PydanticUndefinedAnnotation, PydanticUserError
        except ModuleNotFoundError as error:
            raise missing("pydantic", "PydanticCodec", error) from error

        from idempotency.codecs._pydantic_plan import pydantic_plan

        bound = PydanticCodec(_agreed("PydanticCodec", self._kind, returns))
        try:
            bound._plan = pydantic_plan(bound._kind)
        except (PydanticUserError, PydanticUndefinedAnnotation, NameError) as error:
            reason = getattr(error, "message", str(error))
            raise TypeError(f"pydantic cannot write {show(bound._kind)} as JSON: {reason}") from None
        return bound

    def encode(self, value: Any) -> Any:
        """See `Codec.encode`."""
        assert self._plan is not None, "bind() comes first"
        # Errors may quote the value, which must not reach a log: none of them is raised further.
        try:
            stored = self._plan.encode(value)
            again = self._plan.decode(json.loads(json.dumps(stored)))
        except Exception:
            raise TypeError(
                f"pydantic cannot write this {show(type(value))} as JSON and read it back"
            ) from None
        _require_same(again, value)
        return stored

    def decode(self, stored: Any) -> Any:
        """See `Codec.decode`."""
        assert self._plan is not None, "bind() comes first"
        return self._plan.decode(stored)


def _agreed(codec: str, kind: Any, returns: Any) -> Any:
    """The type that the codec was given or the function is annotated with; refused if both differ."""
    empty = inspect.Signature.empty
    if kind is empty and returns is empty:
        raise TypeError(
            f"{codec} needs a type: annotate what the function returns (with a name that its module can resolve), "
            f"or pass {codec}(the type)"
        )
    if kind is not empty and returns is not empty and returns is not Any and kind != returns:
        raise TypeError(f"{codec} was given {show(kind)}, but the function returns {show(returns)}")
    return returns if kind is empty else kind


def _require_same(again: Any, value: Any) -> None:
    if not _same(again, value):
        raise TypeError(f"a decoded {show(type(value))} would differ from the original")


def _same(left: Any, right: Any) -> bool:
    """Whether both are equal and have the same types at every level, since `1 == True == 1.0`."""
    if type(left) is not type(right):
        return False
    match left:
        case list() | tuple():
            return len(left) == len(right) and all(map(_same, left, right))
        case dict():
            return left.keys() == right.keys() and all(_same(left[name], right[name]) for name in left)
    if dataclasses.is_dataclass(left):
        names = [field.name for field in dataclasses.fields(left)]
        return all(_same(getattr(left, name), getattr(right, name)) for name in names)
    if not bool(left == right):
        return False
    if not hasattr(left, "model_fields_set"):
        return True
    names = type(left).model_fields
    return left.model_fields_set == right.model_fields_set and all(
        _same(getattr(left, name), getattr(right, name)) for name in names
    )
