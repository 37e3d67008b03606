"""The codecs: a value is decoded exactly or refused, at decoration if its annotation shows that it must be."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional, TypedDict, TypeVar, Union
from uuid import UUID
from zoneinfo import ZoneInfo

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import TypeAliasType

from idempotency import UnknownRecordVersion, idempotent
from idempotency._core.annotations import json_misfit, resolve
from idempotency.codecs import JSON, Codec, DataclassCodec, PydanticCodec
from idempotency.stores.memory import SyncMemoryStore

T = TypeVar("T")
OrderId = NewType("OrderId", str)


class Colour(StrEnum):
    RED = "red"


class Point(NamedTuple):
    x: int


class Total(TypedDict):
    cents: int
    note: str | None


class Wrong(TypedDict):
    at: datetime


class Tree(TypedDict):
    children: list[Tree]


@dataclass
class Line:
    sku: str
    cents: int


@dataclass(frozen=True, slots=True)
class Order:
    order_id: OrderId
    lines: list[Line]
    by_sku: dict[str, Line] = field(default_factory=dict)
    parent: Order | None = None
    extra: dict[str, Any] | None = None
    rate: float = 1.0


class Model(pydantic.BaseModel):
    at: datetime
    price: Decimal
    raw: bytes = b""
    tags: set[str] = set()
    when: date | None = pydantic.Field(default=None, alias="onDay")

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def doubled(self) -> Decimal:
        return self.price * 2


class Strict(pydantic.BaseModel, strict=True, extra="forbid"):
    at: datetime
    uuid: UUID
    pair: tuple[int, str]

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def year(self) -> int:
        return self.at.year


class Derived(Model):
    more: int = 0


class Secret(pydantic.BaseModel):
    token: pydantic.SecretStr


class Excluded(pydantic.BaseModel):
    hidden: int = pydantic.Field(default=0, exclude=True)


def round_trip(codec: Codec[Any], value: Any) -> Any:
    """Through the codec and through JSON text, as a store would."""
    return codec.decode(json.loads(json.dumps(codec.encode(value))))


class TestJSONAnnotations:
    @pytest.mark.parametrize(
        "returns",
        [
            inspect.Signature.empty,
            None,
            Any,
            object,
            bool,
            int | None,
            Optional[str],  # noqa: UP045
            Union[int, list[str]],  # noqa: UP007
            list,
            list[dict[str, float]],
            dict[Literal["a", "b"], int],
            dict[OrderId, Total],
            Mapping[str, Sequence[int]],
            Total,
            Tree,
            Literal["a", 1, True],
            Annotated[int, "cents"],
            OrderId,
            TypeAliasType("Names", list[str]),
            T,
            list[T],
            "NotKnownYet",
        ],
        ids=str,
    )
    def test_json_codec_accepts_annotations_of_json_values(self, returns: Any) -> None:
        assert json_misfit(returns) is None
        assert JSON.bind(returns) is JSON
        assert repr(JSON) == "JSON"  # as a signature shows it

    @pytest.mark.parametrize(
        ("returns", "misfit"),
        [
            (datetime, "datetime"),
            (list[Decimal], "Decimal"),
            (dict[str, bytes | None], "bytes"),
            (dict[int, str], "a key of type int"),
            (set[int], "set[int]"),
            (tuple[int, ...], "tuple[int, ...]"),
            (Point, "Point"),
            (Colour, "Colour"),
            (Literal[b"x"], "Literal[b'x']"),
            (Wrong, "datetime"),
            (Line, "Line"),
            (Model, "Model"),
            (Annotated[UUID, []], "UUID"),
            (TypeAliasType("Times", list[datetime]), "datetime"),
            (Callable[[], int], "Callable[[], int]"),
        ],
        ids=str,
    )
    def test_json_codec_refuses_and_names_a_type_that_json_would_change(
        self, returns: Any, misfit: str
    ) -> None:
        with pytest.raises(TypeError, match="codec=PydanticCodec") as caught:
            JSON.bind(returns)
        assert misfit in str(caught.value)

    def test_annotations_are_resolved_from_strings_and_unknown_names_are_ignored(self) -> None:
        def known(order: NotThere) -> datetime: ...  # type: ignore[name-defined]  # noqa: F821

        def unknown(order: str) -> NotThere: ...  # type: ignore[name-defined]  # noqa: F821

        def nothing(order: str) -> None: ...

        assert resolve(known) is datetime
        assert resolve(unknown) is inspect.Signature.empty
        assert json_misfit(resolve(nothing)) is None


class TestDataclassCodec:
    def test_nested_dataclasses_are_decoded_equal_and_with_their_types(self) -> None:
        codec = DataclassCodec().bind(Order)
        leaf = Order(OrderId("2"), [])
        order = Order(OrderId("1"), [Line("a", 2**60)], {"b": Line("b", 1)}, leaf, {"x": [None, 1.5]}, 2.5)
        again = round_trip(codec, order)
        assert again == order
        assert type(again.by_sku["b"]) is Line
        assert type(again.parent) is Order

    def test_lists_and_optionals_of_dataclasses_are_decoded(self) -> None:
        assert round_trip(DataclassCodec().bind(list[Line]), [Line("a", 1)]) == [Line("a", 1)]
        assert round_trip(DataclassCodec().bind(Line | None), None) is None
        assert round_trip(DataclassCodec(Line).bind(inspect.Signature.empty), Line("a", 1)) == Line("a", 1)

    def test_record_without_a_later_field_is_decoded_with_its_default(self) -> None:
        codec = DataclassCodec().bind(Order)
        assert codec.decode({"order_id": "1", "lines": []}) == Order(OrderId("1"), [])

    @pytest.mark.parametrize("stored", [{"order_id": "1", "unknown": 1}, [], {"order_id": "1"}, None])
    def test_record_of_another_shape_is_an_error(self, stored: Any) -> None:
        with pytest.raises((TypeError, KeyError)):
            DataclassCodec().bind(Order).decode(stored)

    def test_type_that_cannot_be_decoded_is_refused_at_decoration(self) -> None:
        @dataclass
        class At:
            at: datetime

        @dataclass
        class Computed:
            x: int = field(init=False, default=1)

        for kind, hint in (
            (Line | Order, "does not say which class"),
            (datetime, "datetime does not come back"),
            (tuple[Line, ...], "does not come back"),
            (dict[int, Line], "does not come back"),
            (Computed, "is no init parameter"),
        ):
            with pytest.raises(TypeError, match=hint):
                DataclassCodec().bind(kind)
        At.__annotations__["at"] = datetime
        with pytest.raises(TypeError, match="datetime does not come back"):
            DataclassCodec().bind(At)
        with pytest.raises(TypeError, match="needs a type"):
            DataclassCodec().bind(inspect.Signature.empty)
        with pytest.raises(TypeError, match="was given Line, but the function returns Order"):
            DataclassCodec(Line).bind(Order)

    def test_field_with_an_unresolvable_annotation_is_refused(self) -> None:
        @dataclass
        class Unknown:
            x: NotThere  # type: ignore[name-defined]  # noqa: F821

        with pytest.raises(TypeError, match="cannot be resolved"):
            DataclassCodec().bind(Unknown)

    def test_value_that_would_be_decoded_differently_is_refused(self) -> None:
        @dataclass
        class Shouting:
            text: str

            def __post_init__(self) -> None:
                self.text += "!"

        codec = DataclassCodec().bind(Shouting)
        with pytest.raises(TypeError, match="would differ from the original"):
            codec.encode(Shouting("a"))

    @pytest.mark.parametrize(
        "value",
        [
            Order(OrderId("1"), [], extra={"x": (1,)}),
            Order(OrderId("1"), [], rate=float("nan")),
            Line("a", 1),
        ],
    )
    def test_value_that_json_would_change_is_refused(self, value: Any) -> None:
        with pytest.raises((TypeError, ValueError)):
            DataclassCodec().bind(Order).encode(value)

    @given(
        st.builds(
            Order,
            st.text(),
            st.lists(st.builds(Line, st.text(), st.integers()), max_size=3),
            rate=st.floats(),
        )
    )
    @settings(max_examples=100)
    def test_every_value_is_decoded_equal_or_refused(self, order: Order) -> None:
        codec = DataclassCodec().bind(Order)
        try:
            codec.encode(order)
        except ValueError:
            assert order.rate != order.rate or order.rate in {float("inf"), float("-inf")}
        else:
            assert repr(round_trip(codec, order)) == repr(order)


class TestPydanticCodec:
    @pytest.mark.parametrize(
        "value",
        [
            Model(
                at=datetime(2026, 1, 1, tzinfo=UTC),
                price=Decimal("1.10"),
                raw=b"x",
                tags={"a"},
                onDay=date(2026, 1, 2),
            ),
            Model(at=datetime(2026, 1, 1, 12, 30, 0, 1), price=Decimal("1E+2")),  # noqa: DTZ001
            Strict(at=datetime(2026, 1, 1, tzinfo=UTC), uuid=UUID(int=1), pair=(1, "a")),
        ],
        ids=["aliases", "naive", "strict"],
    )
    def test_models_are_decoded_equal(self, value: Any) -> None:
        again = round_trip(PydanticCodec().bind(type(value)), value)
        assert again == value
        assert type(again) is type(value)

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            (datetime, datetime(2026, 6, 1, tzinfo=ZoneInfo("Europe/Paris"))),
            (Decimal, Decimal("0.1000")),
            (set[int], {3, 1}),
            (frozenset[str], frozenset({"a"})),
            (bytes, b"text"),
            (bytes, b"\xff\x00"),
            (tuple[int, str], (1, "a")),
            (dict[int, timedelta], {1: timedelta(seconds=1.5)}),
            (int, 2**70),
            (Colour, Colour.RED),
            (Order | None, Order(OrderId("1"), [Line("a", 1)])),
            (list[Model], []),
        ],
        ids=str,
    )
    def test_types_unknown_to_json_are_decoded_equal(self, kind: Any, value: Any) -> None:
        again = round_trip(PydanticCodec().bind(kind), value)
        assert again == value
        assert type(again) is type(value)

    def test_time_zone_is_decoded_as_its_offset(self) -> None:
        value = datetime(2026, 6, 1, tzinfo=ZoneInfo("Europe/Paris"))
        assert round_trip(PydanticCodec().bind(datetime), value).utcoffset() == timedelta(hours=2)

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            (float, float("nan")),
            (float | None, float("inf")),
            (Secret, Secret(token="s3cret")),
            (Excluded, Excluded(hidden=1)),
            (Model, Derived(at=datetime(2026, 1, 1, tzinfo=UTC), price=Decimal(1), more=7)),
            (int, "s3cret"),
            (int, True),
            pytest.param(Any, object(), id="Any-object"),
            (list[Any], [datetime(2026, 1, 1, tzinfo=UTC)]),
        ],
        ids=str,
    )
    def test_value_that_would_be_decoded_differently_is_refused_and_not_quoted(
        self, kind: Any, value: Any
    ) -> None:
        with pytest.raises(TypeError) as caught:
            PydanticCodec().bind(kind).encode(value)
        assert "s3cret" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None

    def test_type_that_pydantic_cannot_serialise_is_refused_at_decoration(self) -> None:
        class Plain:
            pass

        for kind in (Plain, Callable[[], int]):
            with pytest.raises(TypeError, match="pydantic cannot write"):
                PydanticCodec().bind(kind)
        with pytest.raises(TypeError, match="needs a type"):
            PydanticCodec().bind(inspect.Signature.empty)


class TestWithTheDecorator:
    def test_function_that_returns_a_dataclass_is_replayed(self) -> None:
        runs = []

        @idempotent(store=SyncMemoryStore(), operation="line", key=lambda sku: sku, codec=DataclassCodec())
        def line(sku: str) -> Line:
            runs.append(sku)
            return Line(sku, 100)

        assert line("a") == line("a") == Line("a", 100)
        assert runs == ["a"]

    def test_function_with_pydantic_codec_is_replayed(self) -> None:
        @idempotent(store=SyncMemoryStore(), operation="price", key=lambda sku: sku, codec=PydanticCodec())
        def price(sku: str) -> dict[str, Decimal]:
            return {sku: Decimal("1.10")}

        assert price("a") == price("a") == {"a": Decimal("1.10")}

    def test_record_that_the_codec_cannot_decode_is_refused_and_nothing_runs(self) -> None:
        store, runs = SyncMemoryStore(), []

        @idempotent(store=store, operation="op", key=lambda sku: sku, fingerprint=lambda sku: sku)
        def before(sku: str) -> dict[str, str]:
            return {"secret": "s3cret"}

        @idempotent(
            store=store,
            operation="op",
            key=lambda sku: sku,
            fingerprint=lambda sku: sku,
            codec=PydanticCodec(),
        )
        def after(sku: str) -> Line:
            runs.append(sku)
            return Line(sku, 1)

        before("a")
        with pytest.raises(UnknownRecordVersion) as caught:
            after("a")
        assert runs == []
        assert "s3cret" not in str(caught.value)
        assert caught.value.__cause__ is None

    def test_custom_codec_is_used(self) -> None:
        class Hex:
            def bind(self, returns: Any) -> Hex:
                assert returns is bytes
                return self

            def encode(self, value: bytes) -> str:
                return value.hex()

            def decode(self, stored: Any) -> bytes:
                return bytes.fromhex(stored)

        @idempotent(store=SyncMemoryStore(), operation="raw", key=lambda name: name, codec=Hex())
        def raw(name: str) -> bytes:
            return name.encode()

        assert raw("é") == raw("é") == "é".encode()
