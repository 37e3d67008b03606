"""
Codecs: how what a decorated function returns becomes JSON in a record, and a value again for its retries.

Each gives back exactly what it was given or refuses: at decoration where the annotation shows it, else when it meets
the value. None of them can make a record run code: there is no pickle here.
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
    """Two functions that undo each other, chosen for a return type."""

    def bind(self, returns: Any) -> Codec[T]:
        """
        The codec for a function with this return annotation.

        Args:
            returns: The annotation, resolved; `inspect.Signature.empty` where there is none or it cannot be resolved.
        Raises:
            TypeError: Values of that type would not come back as they were.
        """
        ...

    def encode(self, value: T) -> Any:
        """
        *value* as JSON types alone.

        Raises:
            TypeError, ValueError: It would not come back as it is. It is then recorded as done and not kept.
        """
        ...

    def decode(self, stored: Any) -> T:
        """
        Returns the value that `encode` was given.

        Raises:
            Exception: Any, where *stored* no longer fits: the retry is refused, and nothing runs.
        """
        ...


class _JSON:
    """JSON types as they are: None, bool, int, finite float, str, and lists and string-keyed dicts of them."""

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
    Dataclasses of JSON types, of each other, and of lists, string-keyed dicts and optional ones of these.

    Standard library alone. Fields that are not init parameters, and unions of two classes, are refused at decoration.

    Args:
        kind: The type, where the function's return annotation does not say it.
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
        """See `Codec.encode`. A value that its class's `__post_init__` would change on the way back is refused."""
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
    Encodes what pydantic knows: models, dataclasses, typed dicts, tuples, unions, enums, dates, Decimal, UUID, bytes.

    A model is recorded by the names of its fields, whatever its aliases and custom serializers make of them elsewhere,
    and comes back with its validators left out: as it was. Bytes are base64. Refused at decoration: a secret, which is
    masked; a field that is excluded; a type that has no form in JSON. Every value is read back before it is recorded,
    and one that comes back different (NaN, a subclass of what is annotated) is refused. A time zone survives as its
    offset. Needs pydantic 2.7 (the `pydantic` extra).

    Args:
        kind: The type, where the function's return annotation does not say it.
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
        # Errors may quote the value, which has no place in a log: none of them goes further.
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
    """The one type that the codec was given and the function is annotated with."""
    empty = inspect.Signature.empty
    if kind is empty and returns is empty:
        raise TypeError(
            f"{codec} needs a type: annotate what the function returns (with a name that its module can resolve), "
            f"or pass {codec}(the type)"
        )
    if kind is not empty and returns is not empty and returns is not Any and kind != returns:
        raise TypeError(f"{codec} was given {show(kind)}, and the function returns {show(returns)}")
    return returns if kind is empty else kind


def _require_same(again: Any, value: Any) -> None:
    if not _same(again, value):
        raise TypeError(f"a {show(type(value))} comes back from its record different from what it was")


def _same(left: Any, right: Any) -> bool:
    """Equal, and of the same types all the way down: `1 == True == 1.0` is not enough."""
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
