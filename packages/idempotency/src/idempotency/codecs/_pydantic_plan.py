"""
Makes plans, from a type alone: how values of pydantic's types are encoded as JSON and decoded.

A model is encoded field by field, by name, and rebuilt from these fields. Aliases, custom serializers and validators
are not used, because nothing guarantees that one reverses the other. The plan knows the types that JSON lacks, and the
record names the chosen member of a union. A type that cannot be decoded exactly raises TypeError while the plan is
made.
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import enum
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin

import pydantic

from idempotency._core.annotations import Plan, plain, show
from idempotency.codecs._json_forms import (
    LEAVES,
    SCALARS,
    exactly,
    finite,
    json_value,
    of_enum,
    of_literal,
    of_row,
    of_union,
)

__all__ = ["pydantic_plan"]

_SECRETS: Final = tuple(
    kind
    for name in ("SecretStr", "SecretBytes", "Secret")
    if (kind := getattr(pydantic, name, None)) is not None
)
_WRAPPERS: Final = frozenset(
    kind
    for name in ("Required", "NotRequired", "ReadOnly")
    if (kind := getattr(typing, name, None)) is not None
)
_LISTS: Final = frozenset({collections.abc.Sequence, collections.abc.Collection})
# Values of these can be iterated only once.
_ONCE: Final = frozenset({collections.abc.Iterable, collections.abc.Iterator, collections.abc.Generator})
_DICTS: Final = frozenset({collections.abc.Mapping, collections.abc.MutableMapping})
_COLLECTIONS: Final[dict[Any, Any]] = {
    list: list,
    collections.abc.MutableSequence: list,
    set: set,
    collections.abc.MutableSet: set,
    frozenset: frozenset,
    collections.deque: collections.deque,
}


def pydantic_plan(annotation: Any) -> Plan:
    """
    The plan for *annotation*.

    Raises:
        TypeError: Some decoded value of that type would differ from the original.
    """
    return _Planner().of(annotation, {})


class _Planner:
    """Makes plans; each class is planned once, so that a class may contain itself."""

    def __init__(self) -> None:
        self._known: dict[Any, Plan] = {}

    def of(self, annotation: Any, variables: Mapping[Any, Any]) -> Plan:
        annotation = plain(annotation)
        while get_origin(annotation) in _WRAPPERS:
            annotation = plain(get_args(annotation)[0])
        if isinstance(annotation, TypeVar):
            if annotation in variables:
                return self.of(variables[annotation], {})
            return self.of(annotation.__bound__ or Any, variables)
        if annotation is Any or annotation is object:
            return Plan(json_value, json_value)
        if annotation is None or annotation is types.NoneType:
            return Plan(
                lambda value: exactly(types.NoneType, value), lambda stored: exactly(types.NoneType, stored)
            )
        if annotation in SCALARS:
            return Plan(lambda value: exactly(annotation, value), lambda stored: exactly(annotation, stored))
        if annotation is float:
            return Plan(finite, finite)
        if annotation in LEAVES:
            write, read = LEAVES[annotation]
            return Plan(lambda value: write(exactly(annotation, value)), read)
        origin, args = get_origin(annotation), get_args(annotation)
        if origin is Literal:
            return of_literal(args)
        if origin in {Union, types.UnionType}:
            return self._union(args, variables)
        container = self._container(origin or annotation, args, variables)
        return container or self._class(annotation, origin or annotation, args, variables)

    def _container(self, kind: Any, args: tuple[Any, ...], variables: Mapping[Any, Any]) -> Plan | None:
        if kind in _COLLECTIONS:
            made: Any = _COLLECTIONS[kind]
            item = self.of(args[0] if args else Any, variables)
            return Plan(
                lambda value: [item.encode(member) for member in exactly(made, value)],
                lambda stored: made(item.decode(member) for member in exactly(list, stored)),
            )
        if kind in _LISTS:
            member: Any = args[0] if args else Any
            return self._union(
                (types.GenericAlias(list, (member,)), types.GenericAlias(tuple, (member, ...))), variables
            )
        if kind is collections.abc.Set:
            return self._union(
                (types.GenericAlias(set, args), types.GenericAlias(frozenset, args)), variables
            )
        if kind is dict or kind in _DICTS:
            return self._dict(*(args or (Any, Any)), variables=variables)
        if kind is tuple and (not args or args[-1] is Ellipsis):
            item = self.of(args[0] if args else Any, variables)
            return Plan(
                lambda value: [item.encode(member) for member in exactly(tuple, value)],
                lambda stored: tuple(item.decode(member) for member in exactly(list, stored)),
            )
        if kind is tuple:
            return of_row(tuple, [self.of(arg, variables) for arg in args if arg != ()])
        return None

    def _dict(self, key: Any, member: Any, *, variables: Mapping[Any, Any]) -> Plan:
        values = self.of(member, variables)
        if plain(key) is str:
            return Plan(
                lambda value: {
                    exactly(str, name): values.encode(item) for name, item in exactly(dict, value).items()
                },
                lambda stored: {name: values.decode(item) for name, item in exactly(dict, stored).items()},
            )
        keys = self.of(key, variables)
        return Plan(
            lambda value: [
                [keys.encode(name), values.encode(item)] for name, item in exactly(dict, value).items()
            ],
            lambda stored: {keys.decode(name): values.decode(item) for name, item in exactly(list, stored)},
        )

    def _union(self, args: tuple[Any, ...], variables: Mapping[Any, Any]) -> Plan:
        others = [arg for arg in args if arg is not types.NoneType]
        optional = len(others) < len(args)
        if all(plain(other) in SCALARS or plain(other) is float for other in others):
            plans = {plain(other): self.of(other, variables) for other in others}
            one = Plan(
                lambda value: plans[type(value)].encode(value),
                lambda stored: plans[type(stored)].decode(stored),
            )
        elif len(others) == 1:
            one = self.of(others[0], variables)
        else:
            one = of_union([(show(other), self.of(other, variables)) for other in others])
        if not optional:
            return one
        return Plan(
            lambda value: None if value is None else one.encode(value),
            lambda stored: None if stored is None else one.decode(stored),
        )

    def _class(self, annotation: Any, kind: Any, args: tuple[Any, ...], variables: Mapping[Any, Any]) -> Plan:
        if not isinstance(kind, type):
            return _by_pydantic(annotation)
        if kind is type:
            raise TypeError(f"pydantic cannot write {show(annotation)} as JSON: a class is code")
        if issubclass(kind, _SECRETS):
            raise TypeError(
                f"pydantic cannot write {show(annotation)} as JSON: a secret would be masked; "
                "return a value that is not a secret"
            )
        if issubclass(kind, enum.Enum):
            return of_enum(kind)
        if not (
            issubclass(kind, pydantic.BaseModel)
            or dataclasses.is_dataclass(kind)
            or typing.is_typeddict(kind)
            or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
        ):
            return _by_pydantic(annotation)
        given = tuple(variables.get(arg, arg) for arg in args)
        known = self._known.get((kind, given))
        if known is not None:
            return known
        names = dict(zip(getattr(kind, "__parameters__", ()), given, strict=False))
        if issubclass(kind, pydantic.BaseModel):
            return self._model(kind)
        if dataclasses.is_dataclass(kind):
            return self._dataclass(kind, given, names)
        if typing.is_typeddict(kind):
            return self._typed_dict(kind, given, names)
        hints = typing.get_type_hints(kind, include_extras=True)
        return of_row(kind, [self.of(hints.get(name, Any), names) for name in vars(kind)["_fields"]])

    def _model(self, kind: type[pydantic.BaseModel]) -> Plan:
        kind.model_rebuild()
        fields = kind.model_fields
        plans: dict[str, Plan] = {}

        def encode(value: Any) -> Any:
            exactly(kind, value)
            stored: dict[str, Any] = {
                "fields": {name: plan.encode(getattr(value, name)) for name, plan in plans.items()}
            }
            if value.model_fields_set != fields.keys():
                stored["set"] = sorted(value.model_fields_set)
            if value.__pydantic_extra__ is not None:
                stored["extra"] = json_value(value.__pydantic_extra__)
            return stored

        def decode(stored: Any) -> Any:
            given, values = exactly(dict, stored["fields"]), dict[str, Any]()
            for name, plan in plans.items():
                values[name] = plan.decode(given[name]) if name in given else _default(fields[name], values)
            model = kind.__new__(kind)
            model.__setstate__(
                {
                    "__dict__": values,
                    "__pydantic_extra__": stored.get("extra"),
                    "__pydantic_fields_set__": set(stored.get("set", fields)),
                    "__pydantic_private__": None,
                }
            )
            if getattr(kind, "__pydantic_post_init__", None):  # where private attributes get their defaults
                model.model_post_init(None)
            return model

        self._known[kind, ()] = Plan(encode, decode)
        for name, field in fields.items():
            _require_included(kind, name, field)
            plans[name] = self.of(field.annotation, {})
        return self._known[kind, ()]

    def _dataclass(self, kind: Any, given: tuple[Any, ...], names: Mapping[Any, Any]) -> Plan:
        pydantics = getattr(kind, "__pydantic_fields__", {})
        fields = {field.name: field for field in dataclasses.fields(kind)}
        plans: dict[str, Plan] = {}
        # Use the constructor if it takes exactly the fields, since it may also set other attributes.
        constructs = not pydantics and "__dataclass_params__" in vars(kind) and kind.__dataclass_params__.init
        constructs = constructs and all(field.init for field in fields.values())
        constructs = constructs and len(kind.__dataclass_fields__) == len(fields)

        def encode(value: Any) -> Any:
            exactly(kind, value)
            return {name: plan.encode(getattr(value, name)) for name, plan in plans.items()}

        def decode(stored: Any) -> Any:
            values = {name: plans[name].decode(item) for name, item in exactly(dict, stored).items()}
            if constructs:
                return kind(**values)
            made = object.__new__(kind)
            for name, field in fields.items():
                if name not in values and field.default is not dataclasses.MISSING:
                    values[name] = field.default
                elif name not in values and field.default_factory is not dataclasses.MISSING:
                    values[name] = field.default_factory()
                object.__setattr__(made, name, values[name])
            return made

        self._known[kind, given] = Plan(encode, decode)
        hints = typing.get_type_hints(kind, include_extras=True)
        for name in fields:
            _require_included(kind, name, pydantics.get(name))
            plans[name] = self.of(hints[name], names)
        return self._known[kind, given]

    def _typed_dict(self, kind: Any, given: tuple[Any, ...], names: Mapping[Any, Any]) -> Plan:
        plans: dict[str, Plan] = {}
        required = set(kind.__required_keys__)

        def encode(value: Any) -> Any:
            if not required <= exactly(dict, value).keys() <= plans.keys():
                raise TypeError(f"not the members of a {kind.__qualname__}")
            return {name: plans[name].encode(item) for name, item in value.items()}

        def decode(stored: Any) -> Any:
            if not required <= exactly(dict, stored).keys():
                raise TypeError(f"not the members of a {kind.__qualname__}")
            return {name: plans[name].decode(item) for name, item in stored.items()}

        self._known[kind, given] = Plan(encode, decode)
        for name, hint in typing.get_type_hints(kind, include_extras=True).items():
            plans[name] = self.of(hint, names)
            # `__required_keys__` is wrong for annotations given as text.
            if get_origin(hint) is typing.NotRequired:
                required.discard(name)
        return self._known[kind, given]


def _require_included(kind: type[Any], name: str, field: Any) -> None:
    if getattr(field, "exclude", None):
        raise TypeError(
            f"pydantic cannot write {kind.__qualname__} as JSON: its field {name} is excluded, so a retry "
            "would not get it; include it, or return another type"
        )


def _default(field: Any, values: dict[str, Any]) -> Any:
    """The default of a field that the record lacks because a later release added it."""
    if field.is_required():
        raise ValueError("a field is missing")
    try:
        return field.get_default(call_default_factory=True, validated_data=values)
    except TypeError:  # pydantic before 2.10
        return field.get_default(call_default_factory=True)


def _by_pydantic(annotation: Any) -> Plan:
    """The plan of any other type, by pydantic's serializer and validator; each value is checked when encoded."""
    adapter = pydantic.TypeAdapter(annotation)
    adapter.json_schema(mode="serialization")  # raises for types that JSON cannot express
    if (get_origin(annotation) or annotation) in _ONCE:
        raise TypeError(f"{show(annotation)} gives its values only once; return a list of them")
    return Plan(
        lambda value: json.loads(adapter.dump_json(value, warnings="error")),
        lambda stored: adapter.validate_json(json.dumps(stored)),
    )
