"""Values of every return type are decoded unchanged, or the type is refused at decoration."""

from __future__ import annotations

import collections
import dataclasses
import enum
import ipaddress
import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NotRequired,
    TypedDict,
    TypeVar,
)
from uuid import UUID

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic.alias_generators import to_camel

from idempotency import idempotent
from idempotency.codecs import DataclassCodec, PydanticCodec
from idempotency.stores.memory import MemoryStore, SyncMemoryStore

T = TypeVar("T")


class Charge(pydantic.BaseModel):
    validated: str = pydantic.Field(validation_alias=pydantic.AliasChoices("chargeId", "id"))
    serialized: int = pydantic.Field(serialization_alias="amountCents")
    both: str = pydantic.Field(alias="theNote")
    path: str = pydantic.Field(default="", validation_alias=pydantic.AliasPath("meta", "path"))


class Swapped(pydantic.BaseModel):
    one: int = pydantic.Field(alias="two")
    two: int = pydantic.Field(alias="one")


class Camel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True, strict=True)
    card_number: str
    paid_at: datetime


class Serialized(pydantic.BaseModel):
    at: datetime
    amount: Decimal

    @pydantic.field_serializer("at")
    def _day(self, at: datetime) -> str:
        return f"on {at:%A}"

    @pydantic.field_serializer("amount")
    def _cents(self, amount: Decimal) -> int:
        return int(amount * 100)


class Wrapped(pydantic.BaseModel):
    number: int

    @pydantic.model_serializer
    def _short(self) -> str:
        return "short"


class Twice(pydantic.BaseModel):
    number: int

    @pydantic.field_validator("number")
    @classmethod
    def _double(cls, number: int) -> int:
        return number * 2

    @pydantic.field_validator("number", mode="before")
    @classmethod
    def _read(cls, text: Any) -> int:
        return int(text.removeprefix("#"))


class Raw(pydantic.BaseModel):
    content: bytes
    more: list[bytes] | None = None
    encoded: pydantic.Base64Bytes = b"YQ=="


class Open(pydantic.BaseModel, extra="allow"):
    known: int = 0


class Private(pydantic.BaseModel):
    shown: int
    _hidden: int = pydantic.PrivateAttr(default=7)

    @cached_property
    def computed(self) -> int:
        return self.shown + 1


class Tree(pydantic.BaseModel):
    name: str
    children: list[Tree] = []


class Cat(pydantic.BaseModel):
    name: str


class Dog(pydantic.BaseModel):
    name: str


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]


class Numbers(pydantic.RootModel[list[int]]):
    pass


class Level(enum.IntEnum):
    LOW = 1


class Flags(enum.Flag):
    READ = 1
    WRITE = 2


class Shape(enum.Enum):
    ROUND = ("round", 1)


class Point(NamedTuple):
    x: int
    at: datetime


class Row(TypedDict):
    price: Decimal
    note: NotRequired[bytes]


@dataclasses.dataclass(frozen=True, slots=True)
class Plain:
    at: datetime
    raw: bytes = b""
    parent: Plain | None = None


@dataclasses.dataclass
class Box(Generic[T]):
    content: T


@dataclasses.dataclass
class Initialised:
    base: int
    factor: dataclasses.InitVar[int]
    product: int = dataclasses.field(init=False)

    def __post_init__(self, factor: int) -> None:
        self.product = self.base * factor


@pydantic.dataclasses.dataclass
class Aliased:
    card: str = pydantic.Field(alias="cardNumber")
    at: date = date(2026, 1, 1)


NOON = datetime(2026, 1, 1, 12, 0, 0, 1, tzinfo=UTC)
VALUES: list[tuple[Any, Any]] = [
    (Charge, Charge.model_validate({"id": "c", "serialized": 1, "theNote": "n", "meta": {"path": "p"}})),
    (list[Charge], [Charge.model_validate({"chargeId": "c", "serialized": 1, "theNote": "n"})]),
    (Swapped, Swapped(one=2, two=1)),
    (Camel, Camel(cardNumber="4242", paidAt=NOON)),
    (Serialized, Serialized(at=NOON, amount=Decimal("1.234"))),
    (Wrapped, Wrapped(number=1)),
    (Twice, Twice(number="#3")),  # type: ignore[arg-type]
    (Raw, Raw(content=b"\xff\x00", more=[b"", b"\x80"])),
    (Open, Open(known=1, other={"a": [1]})),  # type: ignore[call-arg]
    (Private, Private(shown=1)),
    (Tree, Tree(name="a", children=[Tree(name="b")])),
    (Cat | Dog, Dog(name="x")),
    (Cat | Dog | None, None),
    (list[Cat | Dog], [Dog(name="x"), Cat(name="y")]),
    (Page[Dog], Page[Dog](items=[Dog(name="x")])),
    (Page[bytes], Page[bytes](items=[b"\xff"])),
    (Numbers, Numbers([1, 2])),
    (Level, Level.LOW),
    (Level | int, 1),
    (Level | int, Level.LOW),
    (Flags, Flags.READ | Flags.WRITE),
    (Shape, Shape.ROUND),
    (dict[Shape, int], {Shape.ROUND: 1}),
    (Point, Point(1, NOON)),
    (Row, {"price": Decimal("1.10"), "note": b"\xff"}),
    (Row, {"price": Decimal("1E+2")}),
    (Plain, Plain(NOON, b"\xfe", Plain(NOON))),
    (Box[Plain], Box(Plain(NOON))),
    (Initialised, Initialised(2, 3)),
    (Aliased, Aliased(cardNumber="4242")),  # type: ignore[call-arg]
    (Annotated[Decimal, pydantic.PlainSerializer(float)], Decimal("0.1")),
    (date | datetime, NOON),
    (date | datetime | str, "2026-01-01"),
    (Decimal | str, "1.10"),
    (bytes | str, b"text"),
    (int | float, 1.0),
    (int | str | None, "1"),
    (tuple[int, ...] | list[int], [1]),
    (Sequence[int], (1, 2)),
    (Sequence[int], [1, 2]),
    (Mapping[date, int], {date(2026, 1, 1): 1}),
    (AbstractSet[int], frozenset({1})),
    (tuple[int, bytes], (1, b"\xff")),
    (tuple[()], ()),
    (collections.deque[int], collections.deque([1])),
    (Literal["a", 1, Level.LOW], Level.LOW),
    (Literal["a", 1], 1),
    (datetime, datetime(2026, 1, 1)),  # noqa: DTZ001
    (datetime, datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))),
    (time, time(1, 2, 3, 4)),
    (timedelta, timedelta(days=-1, microseconds=1)),
    (UUID, UUID(int=1)),
    (Path, Path("/a")),
    (ipaddress.IPv4Address | ipaddress.IPv6Address, ipaddress.IPv4Address("127.0.0.1")),
    (pydantic.AnyUrl, pydantic.AnyUrl("https://a.example/")),
    (pydantic.Json[list[int]], [1]),
    (dict[str, Raw] | None, {"a": Raw(content=b"\x80")}),
    (bytearray, bytearray(b"\xff")),
]


@pytest.mark.parametrize(
    ("kind", "value"), VALUES, ids=[f"{kind!r:.60}-{n}" for n, (kind, _) in enumerate(VALUES)]
)
def test_value_of_every_return_type_is_decoded_unchanged(kind: Any, value: Any) -> None:
    codec = PydanticCodec().bind(kind)
    again = codec.decode(json.loads(json.dumps(codec.encode(value))))
    assert again == value
    assert type(again) is type(value)
    assert repr(again) == repr(value)


@pytest.mark.parametrize(("kind", "value"), VALUES[:12], ids=[f"{kind!r:.60}" for kind, _ in VALUES[:12]])
@pytest.mark.anyio
async def test_second_call_gets_the_value_of_sync_and_async_functions(kind: Any, value: Any) -> None:
    once: Any = {"operation": "op", "key": lambda: "k", "codec": PydanticCodec()}

    def run() -> Any:
        return value

    async def run_async() -> Any:
        return value

    run.__annotations__["return"] = run_async.__annotations__["return"] = kind
    guarded = idempotent(store=SyncMemoryStore(), **once)(run)
    assert guarded() == guarded() == value
    guarded_async = idempotent(store=MemoryStore(), **once)(run_async)
    assert await guarded_async() == await guarded_async() == value


class Secret(pydantic.BaseModel):
    token: pydantic.SecretStr


class Nested(pydantic.BaseModel):
    inner: list[Secret]


class Excluding(pydantic.BaseModel):
    hidden: int = pydantic.Field(default=0, exclude=True)


class Lazy(pydantic.BaseModel):
    numbers: Generator[int, None, None]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Secret, "masked"),
        (Nested, "masked"),
        (pydantic.SecretBytes, "masked"),
        (Excluding, "hidden is excluded"),
        (dict[str, list[Excluding]], "excluded"),
        (Cat | Excluding, "excluded"),
        (Lazy, "once"),
        (Iterable[int], "once"),
        (type[int], "cannot write"),
    ],
)
def test_return_type_that_json_cannot_restore_is_refused_at_decoration(kind: Any, reason: str) -> None:
    with pytest.raises(TypeError, match=reason):
        PydanticCodec().bind(kind)


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        (Charge, {"fields": {"validated": 1}}),
        (Charge, {"fields": {}}),
        (Charge, {}),
        (Charge, []),
        (bytes, "not base64!"),
        (Cat | Dog, {"as": "Wolf", "value": {}}),
        (Level, "HIGH"),
        (Literal["a"], "b"),
        (Literal["a", Level.LOW], -1),
        (tuple[int, int], [1]),
        (datetime, "yesterday"),
        (Row, {"note": "YQ=="}),
        (Plain, {"raw": ""}),
    ],
)
def test_record_of_another_shape_is_not_decoded(kind: Any, stored: Any) -> None:
    with pytest.raises((TypeError, ValueError, KeyError, ArithmeticError)):
        PydanticCodec().bind(kind).decode(stored)


def test_model_field_added_later_is_decoded_with_its_default() -> None:
    class Before(pydantic.BaseModel):
        name: str

    class After(pydantic.BaseModel):
        name: str
        tags: list[str] = pydantic.Field(default_factory=list, alias="theTags")

    stored = PydanticCodec().bind(Before).encode(Before(name="a"))
    assert PydanticCodec().bind(After).decode(stored) == After(name="a")


def test_dataclass_codec_refuses_init_only_variables() -> None:
    with pytest.raises(TypeError, match="InitVar"):
        DataclassCodec().bind(Initialised)


LEAF = None | bool | int | bytes | Decimal | datetime | str


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=5),
        st.lists(
            st.none()
            | st.booleans()
            | st.integers()
            | st.binary()
            | st.decimals(allow_nan=False)
            | st.datetimes()
            | st.text(st.characters(codec="utf-8")),
            max_size=3,
        ),
    )
)
def test_value_of_a_wide_union_is_decoded_with_its_type(value: Any) -> None:
    codec = PydanticCodec().bind(dict[str, list[LEAF]])
    again = codec.decode(json.loads(json.dumps(codec.encode(value))))
    assert repr(again) == repr(value)
