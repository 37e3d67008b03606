"""The encoding of arguments for fingerprints: different values have different encodings, whatever their types."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field, make_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum
from fractions import Fraction
from ipaddress import ip_address, ip_network
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pytest
from decorated import Harness
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AnyUrl, BaseModel, ConfigDict, HttpUrl, PostgresDsn, SecretStr, create_model
from pydantic_core import Url

from idempotency import FingerprintMismatch
from idempotency._core.json import canonical
from idempotency.decorators.arguments import encode_argument


class Colour(Enum):
    RED = 1
    GREEN = 2
    ALSO_RED = 1  # noqa: PIE796


class Number(IntEnum):
    ONE = 1


class Right(Flag):
    READ = 1
    WRITE = 2


@dataclass(frozen=True)
class Line:
    sku: str
    count: int = 1
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class OtherLine:
    sku: str
    count: int = 1


@attrs.define
class Parcel:
    sku: str
    count: int = 1
    notes: list[str] = attrs.field(factory=list)
    label: str = attrs.field(default=attrs.Factory(lambda self: self.sku, takes_self=True))


class Item(msgspec.Struct):
    sku: str
    count: int = 1
    notes: list[str] = []
    gift: bool | msgspec.UnsetType = msgspec.UNSET


class Point(NamedTuple):
    x: int
    y: int = 0


class Order(BaseModel):
    model_config = ConfigDict(extra="allow")

    number: str
    lines: list[Line] = []
    due: date | None = None


BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2026, 6, 1, 12)  # noqa: DTZ001

DIFFERENT: list[Any] = [
    *(None, True, False, 1, 0, -1, 1.0, 0.0, -0.0, "1", "", "True", b"1", b"", bytearray(b"1")),
    *(Decimal(1), Decimal("1.0"), Decimal("1E+1"), Decimal(10), Decimal("-0"), Decimal(0), Fraction(1)),
    *([], {}, set(), [1], [[1]], {1}, {"1"}, {True}, {1.0}, {"1": 1}, {1: 1}, {1: "1"}, {(1, 2): 1}, [1, 2], [2, 1]),
    *(UUID(int=1), str(UUID(int=1)), UUID(int=1).bytes),
    *(date(2026, 6, 1), "2026-06-01", NOON, NOON.isoformat(), time(12), timedelta(1), timedelta(seconds=1)),
    *(NOON.replace(tzinfo=BERLIN), NOON.replace(tzinfo=timezone(timedelta(hours=2))), NOON.replace(tzinfo=UTC)),
    *(NOON.replace(tzinfo=UTC) - timedelta(hours=2), NOON.replace(fold=1), time(12, tzinfo=UTC)),
    *(Colour.RED, Colour.GREEN, "RED", Number.ONE, Right.READ, Right.WRITE, Right.READ | Right.WRITE),
    *(Line("a"), Line("a", 2), Line("b"), Line("a", 1, ["x"]), OtherLine("a"), {"sku": "a"}, {"sku": "a", "count": 1}),
    *(Point(1), Point(1, 2), [1, 0]),
    *(Order(number="1"), Order(number="1", due=None), Order(number="1", due=date(2026, 6, 1)), {"number": "1"}),
    *(Order(number="1", lines=[Line("a")]), Order(number="1", more=1), Order(number="1", more=2)),
    *(Parcel("a"), Parcel("a", 2), Parcel("b"), Parcel("a", 1, ["x"]), Parcel("a", label="x")),
    *(Item("a"), Item("a", 2), Item("b"), Item("a", 1, ["x"]), Item("a", gift=True), Item("a", gift=False)),
    # Before pydantic 2.10 both have one class.
    *{type(url): url for url in (HttpUrl("https://a.example"), AnyUrl("https://a.example"))}.values(),
    *(HttpUrl("https://a.example/b"), "https://a.example/"),
    *(PostgresDsn("postgresql://a/b"), PostgresDsn("postgresql://a/c"), msgspec.UNSET),
    *(BERLIN, ZoneInfo("Europe/Paris"), "Europe/Berlin"),
    *(UTC, timezone(timedelta(0), "GMT"), timezone(timedelta(hours=1))),
    *(PurePosixPath("a"), PureWindowsPath("a"), ip_address("127.0.0.1"), ip_address("::1"), ip_network("::/8")),
]  # fmt: skip


def test_different_arguments_have_different_encodings() -> None:
    encodings: dict[bytes, Any] = {}
    for value in DIFFERENT:
        text = encode_argument(value)
        assert text not in encodings, f"{value!r} and {encodings[text]!r}"
        encodings[text] = value
    nested = {encode_argument([value]) for value in DIFFERENT} | {
        encode_argument({"a": v}) for v in DIFFERENT
    }
    assert len(nested) == 2 * len(DIFFERENT)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, (2,)), [1, [2]]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({3, 1, 2}, frozenset([2, 3, 1])),
        ({1: {Colour.RED}, "a": 1}, {"a": 1, 1: {Colour.ALSO_RED}}),
        (Line("a"), Line("a", 1)),
        (Line("a", notes=[]), Line("a")),
        (Point(1), Point(1, 0)),
        (Parcel("a"), Parcel("a", 1, [], "a")),
        (Item("a"), Item("a", 1, [], msgspec.UNSET)),
        (HttpUrl("https://a.example"), HttpUrl("https://A.example/")),
        (Order(number="1", lines=[Line("a")]), Order(number="1", lines=[{"sku": "a"}])),
        (PurePosixPath("a"), Path("a")) if sys.platform != "win32" else (1, 1),
        (NOON.replace(tzinfo=UTC), datetime.fromisoformat("2026-06-01T12:00:00+00:00")),
        (UUID(int=1), type("DriversUUID", (UUID,), {})(int=1)),
    ],
)
def test_equal_arguments_have_the_same_encoding(one: Any, other: Any) -> None:
    assert encode_argument(one) == encode_argument(other)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.binary(),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.fractions(),
    st.uuids(),
    st.dates(),
    st.datetimes(timezones=st.none() | st.sampled_from([UTC, BERLIN, timezone(timedelta(hours=1))])),
    st.times(),
    st.timedeltas(),
    st.sampled_from(list(Colour) + list(Number) + list(Right)),
)
HASHABLE = st.recursive(
    SCALARS, lambda inner: st.tuples(inner) | st.frozensets(inner, max_size=3), max_leaves=4
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.sets(HASHABLE, max_size=3),
        st.dictionaries(HASHABLE, inner, max_size=3),
        st.builds(Line, sku=st.text(max_size=2), count=inner, notes=inner),
        st.builds(Point, inner, inner),
        st.builds(lambda value: Order.model_construct(number=value), inner),
    ),
    max_leaves=6,
)


def _observable(value: Any) -> Any:
    """Equal iff no function could tell two values apart: types and spellings count, the order in sets does not."""
    match value:
        case Order():
            return ("Order", _observable(value.number))
        case Line():
            return ("Line", value.sku, _observable(value.count), _observable(value.notes))
        case Point():
            return ("Point", _observable(value.x), _observable(value.y))
        case Enum():
            return repr(value)
        case list() | tuple():
            return ("list", *map(_observable, value))
        case set() | frozenset():
            return ("set", *sorted(repr(_observable(item)) for item in value))
        case dict():
            return (
                "dict",
                *sorted(repr((_observable(name), _observable(member))) for name, member in value.items()),
            )
        case datetime():
            return ("datetime", repr(value), value.fold)
    return (type(value).__name__, repr(value))


@given(VALUES, VALUES)
@settings(max_examples=300)
def test_encodings_are_equal_iff_no_function_could_tell_the_values_apart(left: Any, right: Any) -> None:
    same = repr(_observable(left)) == repr(_observable(right))
    assert (encode_argument(left) == encode_argument(right)) is same


@given(VALUES)
def test_encoding_distinguishes_a_value_from_a_list_of_it(value: Any) -> None:
    assert encode_argument([value]) != encode_argument(value)
    assert encode_argument([value, value]) != encode_argument([[value, value]])
    assert encode_argument([value]) == encode_argument((value,))


def test_json_values_are_encoded_as_canonical_json() -> None:
    for value in (None, 1, "é", [1, {"b": 1.5, "a": (True,)}]):
        assert encode_argument(value) == canonical(value)
        assert not encode_argument(value).startswith(b"!")


def test_encoding_does_not_depend_on_the_hash_seed() -> None:
    value = "{'b', 'a', 'c', 1, 2.5, None, UUID(int=7), date(2026, 6, 1)}"
    program = (
        "from datetime import date; from uuid import UUID; from idempotency.decorators.arguments import "
        f"encode_argument; print(encode_argument({value}).hex())"
    )
    encodings = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(encodings) == 1


def test_added_field_at_its_default_does_not_change_the_encoding() -> None:
    where = {"__module__": "jobs"}
    fields: list[Any] = [("name", str)]
    more = [("retries", int, 3), ("tags", list, field(default_factory=list))]
    before = make_dataclass("Job", fields, namespace=dict(where))
    after = make_dataclass("Job", fields + more, namespace=dict(where))
    assert encode_argument(before("a")) == encode_argument(after("a"))
    assert encode_argument(before("a")) != encode_argument(after("a", 4))
    plain = attrs.make_class("Job", {"name": attrs.field()}, class_body=dict(where))
    wider = attrs.make_class(
        "Job",
        {"name": attrs.field(), "retries": attrs.field(default=3), "tags": attrs.field(factory=list)},
        class_body=dict(where),
    )
    assert encode_argument(plain("a")) == encode_argument(wider("a")) != encode_argument(wider("a", 4))
    struct = msgspec.defstruct("Job", [("name", str)], module="jobs")
    longer = msgspec.defstruct(
        "Job", [("name", str), ("retries", int, 3), ("tags", list, [])], module="jobs", kw_only=True
    )
    assert encode_argument(struct("a")) == encode_argument(longer(name="a"))
    assert encode_argument(longer(name="a")) != encode_argument(longer(name="a", retries=4))
    model = create_model("Job", __module__="jobs", name=(str, ...))
    later = create_model("Job", __module__="jobs", name=(str, ...), retries=(int, 3))
    assert encode_argument(model(name="a")) == encode_argument(later(name="a"))


class Wider(Line):
    def __init__(self, more: str) -> None:
        super().__init__("a")
        object.__setattr__(self, "more", more)


class Endpoint:
    """Has the private attribute of pydantic's URLs, and another attribute."""

    def __init__(self, url: str, cents: int) -> None:
        self._url = Url(url)
        self.cents = cents


@pytest.mark.parametrize(
    "value",
    [
        Wider("x"),
        Endpoint("https://a.example", 5),
        SecretStr("x"),
        OrderedDict(a=1),
        type("Text", (str,), {})("a"),
        type("Plain", (), {})(),
        iter([]),
        Line,
    ],
    ids=lambda value: type(value).__name__,
)
def test_value_of_an_unknown_type_is_refused_and_not_quoted(value: Any) -> None:
    with pytest.raises(TypeError) as refused:
        encode_argument({"secret-member": {value} if isinstance(value, str) else value})
    assert "secret-member" not in str(refused.value)


def test_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = [UUID(int=1)]
    loop.append(loop)
    with pytest.raises(ValueError, match="nested deeper than 100"):
        encode_argument(loop)


def test_integers_of_any_length_are_encoded() -> None:
    assert encode_argument({10**5000}) != encode_argument({10**5000 + 1})


def test_namedtuple_is_encoded_with_its_type() -> None:
    old = namedtuple("old", ["a"])  # noqa: PYI024
    assert encode_argument(old(UUID(int=1))) != encode_argument([UUID(int=1)])


@pytest.mark.anyio
async def test_decorated_function_compares_such_arguments_without_a_fingerprint_function(
    harness: Harness,
) -> None:
    def total(order: str, lines: list[Line], due: datetime, price: Decimal, tags: set[str]) -> str:
        return order

    guarded = harness.guard(total, key=lambda order, *_: order)
    call = ("o-1", [Line("a")], NOON.replace(tzinfo=BERLIN), Decimal("9.90"), {"x", "y"})
    assert await harness.call(guarded, *call) == await harness.call(guarded, *call) == "o-1"
    assert len(harness.runs) == 1
    for changed in (
        (*call[:1], [Line("b")], *call[2:]),
        (*call[:2], NOON.replace(tzinfo=UTC), *call[3:]),
        (*call[:3], Decimal("9.9"), call[4]),
        (*call[:4], {"x"}),
    ):
        with pytest.raises(FingerprintMismatch):
            await harness.call(guarded, *changed)
