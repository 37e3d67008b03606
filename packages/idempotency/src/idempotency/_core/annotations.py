"""Reads return annotations at decoration: whether JSON can hold the values, and how to encode dataclasses."""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, ForwardRef, Literal, NamedTuple, NewType, TypeVar, Union, get_args, get_origin

from idempotency._core.json import require_exact

__all__ = ["Plan", "json_misfit", "plain", "plan", "resolve", "show", "signature"]

_EMPTY = inspect.Signature.empty
_SCALARS: frozenset[Any] = frozenset({str, int, float, bool, None, type(None)})
# With these, only a value shows whether JSON can hold it.
_UNKNOWN: frozenset[Any] = frozenset({_EMPTY, Any, object, typing.Never, typing.NoReturn})
_SEQUENCES = {list, collections.abc.Sequence, collections.abc.MutableSequence, collections.abc.Iterable}
_MAPPINGS = {dict, collections.abc.Mapping, collections.abc.MutableMapping}


def signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of *function*; an annotation may use names that are not defined yet."""
    if sys.version_info >= (3, 14):  # annotations are evaluated when they are read (PEP 649)
        from annotationlib import Format

        return inspect.signature(function, annotation_format=Format.FORWARDREF)
    return inspect.signature(function)


def resolve(function: Callable[..., Any]) -> Any:
    """The return annotation; `Signature.empty` if there is none, or if its names are not defined yet."""
    try:
        annotation = signature(function).return_annotation
        holder = types.SimpleNamespace(__annotations__={"return": annotation})
        if annotation is None or annotation is _EMPTY:
            return annotation
        namespace = getattr(inspect.unwrap(function), "__globals__", {})
        return typing.get_type_hints(holder, globalns=namespace, include_extras=True)["return"]
    except (NameError, TypeError, AttributeError, SyntaxError):
        return _EMPTY


def show(annotation: Any) -> str:
    """An annotation as a person would write it."""
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__qualname__
    return str(annotation).replace("typing.", "")


def plain(annotation: Any) -> Any:
    """*annotation* without `Annotated`, `NewType` and type aliases."""
    while True:
        if get_origin(annotation) is typing.Annotated:
            annotation = get_args(annotation)[0]
        elif isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":  # in `typing` since Python 3.12
            annotation = annotation.__value__
        else:
            return annotation


def json_misfit(annotation: Any, _inside: tuple[Any, ...] = ()) -> str | None:
    """The part of *annotation* whose values JSON always changes, or None. Types that only a value can decide pass."""
    annotation = plain(annotation)
    if any(annotation is outer for outer in _inside):
        return None  # recursive: the outer call checks it
    inside = (*_inside, annotation)
    if isinstance(annotation, str | ForwardRef | TypeVar):
        return None
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return next((f"Literal[{item!r}]" for item in args if type(item) not in _SCALARS), None)
    if origin in {Union, types.UnionType}:
        return _first(json_misfit(item, inside) for item in args)
    kind = origin or annotation
    if kind in _SEQUENCES:
        return _first(json_misfit(item, inside) for item in args)
    if kind in _MAPPINGS:
        if (
            args
            and json_misfit(args[0]) is None
            and plain(args[0]) not in {str, Any}
            and not _is_text(args[0])
        ):
            return f"a key of type {show(args[0])}"
        return _first(json_misfit(item, inside) for item in args)
    if typing.is_typeddict(annotation):
        members = typing.get_type_hints(annotation).values()
        return _first(json_misfit(item, inside) for item in members)
    if kind in _SCALARS or kind in _UNKNOWN:
        return None
    return show(annotation)


def _is_text(annotation: Any) -> bool:
    return get_origin(annotation) is Literal and all(type(item) is str for item in get_args(annotation))


def _first(misfits: collections.abc.Iterable[str | None]) -> str | None:
    return next((misfit for misfit in misfits if misfit is not None), None)


class Plan(NamedTuple):
    """Encodes values of one type as JSON, and decodes them."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


def plan(annotation: Any) -> Plan:
    """
    The plan for a dataclass, or for a list, a dict with `str` keys or an Optional of dataclasses.

    Raises:
        TypeError: A type in *annotation* does not survive a JSON round trip.
    """
    return _plan(annotation, {})


def _plan(annotation: Any, known: dict[type, Plan]) -> Plan:
    annotation = plain(annotation)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _class_plan(annotation, known)
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is list:
        item = _plan(args[0], known)
        return Plan(
            lambda value: [item.encode(member) for member in _expect(value, list)],
            lambda stored: [item.decode(member) for member in _expect(stored, list)],
        )
    if origin is dict and plain(args[0]) is str:
        item = _plan(args[1], known)
        return Plan(
            lambda value: {name: item.encode(member) for name, member in _expect(value, dict).items()},
            lambda stored: {name: item.decode(member) for name, member in _expect(stored, dict).items()},
        )
    if origin in {Union, types.UnionType} and json_misfit(annotation) is not None:
        others = [item for item in args if item is not type(None)]
        if len(others) == len(args) or len(others) > 1:
            raise TypeError(
                f"{show(annotation)} does not say which class a record holds; use codec=PydanticCodec()"
            )
        item = _plan(others[0], known)
        return Plan(
            lambda value: None if value is None else item.encode(value),
            lambda stored: None if stored is None else item.decode(stored),
        )
    misfit = json_misfit(annotation)
    if misfit is not None:
        raise TypeError(f"{misfit} does not come back from JSON as it was; use codec=PydanticCodec()")
    return Plan(_checked, lambda stored: stored)


def _class_plan(kind: type[Any], known: dict[type, Plan]) -> Plan:
    if kind in known:
        return known[kind]
    plans: dict[str, Plan] = {}

    def encode(value: Any) -> Any:
        _expect(value, kind)
        return {name: part.encode(getattr(value, name)) for name, part in plans.items()}

    def decode(stored: Any) -> Any:
        _expect(stored, dict)
        return kind(**{name: plans[name].decode(member) for name, member in stored.items()})

    known[kind] = Plan(encode, decode)  # before its fields, since a field may hold the class itself
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except NameError as error:
        raise TypeError(f"the fields of {kind.__qualname__} cannot be resolved: {error}") from None
    if len(kind.__dataclass_fields__) != len(dataclasses.fields(kind)) and any(
        isinstance(hint, dataclasses.InitVar) or hint is dataclasses.InitVar for hint in hints.values()
    ):
        raise TypeError(
            f"{kind.__qualname__} has an InitVar, whose value is not recorded; use codec=PydanticCodec()"
        )
    for field in dataclasses.fields(kind):
        if not field.init:
            raise TypeError(
                f"{kind.__qualname__}.{field.name} is no init parameter; use codec=PydanticCodec()"
            )
        plans[field.name] = _plan(hints[field.name], known)
    return known[kind]


def _checked(value: Any) -> Any:
    require_exact(value)
    return value


def _expect(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise TypeError(f"a {kind.__qualname__} was expected, not a {type(value).__qualname__}")
    return value
