"""The JSON of requests and answers: exact reading, refusals, the projection, and the bytes of an answer."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_api.predict.answer import PredictResponse, encode_answer
from ml_api.predict.contract import (
    DecisionRequest,
    MalformedBody,
    PredictRequest,
    parse_request,
    projection,
)
from ml_api.predict.types import money_schema
from ml_api.trading.decision import Decision
from ml_api.trading.types import Contribution, Order, Signal

CANDLE = {
    "symbol": "BTC",
    "timestamp": "2026-02-20T14:00:00Z",
    "open": 1,
    "high": 2,
    "low": 0.5,
    "close": 1.5,
    "volume": 0,
}
MINUTE = int(datetime(2026, 2, 20, 14, tzinfo=UTC).timestamp()) // 60


def document(**changes: Any) -> dict[str, Any]:
    return {
        "agentId": "alice",
        "portfolio": {"cash": 1.10, "totalValue": 2, "positions": []},
        "candles": [CANDLE],
    } | changes


def dump(value: object) -> bytes:
    return json.dumps(value).encode()


def projection_of(request: DecisionRequest) -> tuple[str, int | None]:
    """The agent and the newest minute of a fully parsed request."""
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    minutes = [
        (time - epoch) // timedelta(minutes=1) for one in request.series.values() for time in one.times
    ]
    return request.agent_id, max(minutes, default=None)


def refusal(body: bytes) -> MalformedBody:
    with pytest.raises(MalformedBody) as caught:
        parse_request(body)
    return caught.value


class TestNumbers:
    """Decimals keep every digit."""

    def test_a_json_number_keeps_its_scale(self) -> None:
        body = dump(document()).replace(b"1.1,", b"0.10000000000000000000000001,")
        assert str(parse_request(body).portfolio.cash) == "0.10000000000000000000000001"

    def test_a_decimal_string_is_read_as_its_number(self) -> None:
        request = parse_request(dump(document(portfolio={"cash": "64210.12500000", "totalValue": "1E2"})))
        assert str(request.portfolio.cash) == "64210.12500000"
        assert request.portfolio.total_value == 100

    @given(
        st.decimals(allow_nan=False, allow_infinity=False, places=8, min_value=-(10**20), max_value=10**20)
    )
    def test_number_and_string_agree_for_every_decimal(self, value: Decimal) -> None:
        as_number = dump(document()).replace(b'"close": 1.5', f'"close": {value:f}'.encode())
        as_string = dump(document()).replace(b'"close": 1.5', f'"close": "{value:f}"'.encode())
        assert parse_request(as_number).series["BTC"].exact_close(0) == value
        assert parse_request(as_string).series["BTC"].exact_close(0) == value

    @pytest.mark.parametrize(
        "bad", [True, None, "", " 1", "1_000", "NaN", "Infinity", "0x10", "１２", [], {}, "9" * 100]
    )
    def test_a_value_that_is_not_a_decimal_is_refused(self, bad: object) -> None:
        error = refusal(dump(document(candles=[CANDLE | {"close": bad}])))
        assert error.status == 422
        assert [(item["type"], item["loc"]) for item in error.detail] == [
            ("decimal", ["body", "candles", 0, "close"])
        ]

    @pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity"])
    def test_literals_that_are_not_json_are_refused(self, literal: bytes) -> None:
        error = refusal(dump(document()).replace(b"1.5", literal))
        assert (error.status, error.detail[0]["type"]) == (422, "json_invalid")

    @pytest.mark.parametrize("huge", [b"1e30", b"-1e30", b"1e999999", b"1" + b"0" * 400])
    def test_money_beyond_a_dotnet_decimal_is_refused(self, huge: bytes) -> None:
        error = refusal(dump(document()).replace(b'"totalValue": 2', b'"totalValue": ' + huge))
        assert error.detail[0]["loc"] == ["body", "portfolio", "totalValue"]

    @pytest.mark.parametrize("huge", [b"1e99999999999999999999", b"-1e-99999999999999999999", b"1" * 5000])
    def test_money_beyond_any_decimal_is_refused(self, huge: bytes) -> None:
        assert refusal(dump(document()).replace(b'"totalValue": 2', b'"totalValue": ' + huge)).status == 422

    @pytest.mark.parametrize("huge", [b"1e400", b"1e99999999999999999999", b"1" + b"0" * 400])
    def test_a_price_beyond_float64_is_infinite(self, huge: bytes) -> None:
        request = parse_request(dump(document()).replace(b"1.5", huge))
        assert request.series["BTC"].closes == [float("inf")]


class TestTimestamps:
    """ISO 8601 with Z, an offset, or none."""

    @pytest.mark.parametrize(
        "text",
        [
            "2026-02-20T14:00:00Z",
            "2026-02-20t14:00:00z",
            "2026-02-20T14:00:00+00:00",
            "2026-02-20T14:00:00",
            "2026-02-20T15:30:00+01:30",
            "2026-02-20T14:00:00.0000000Z",
            "2026-02-20T14:00:00.0000001+00:00",
            "2026-02-20 14:00Z",
            "2026-02-20T15:00:00+0100",
        ],
    )
    def test_every_spelling_of_an_instant_is_read_the_same(self, text: str) -> None:
        body = dump(document(candles=[CANDLE | {"timestamp": text}]))
        assert parse_request(body).series["BTC"].times[0] == datetime(2026, 2, 20, 14, tzinfo=UTC)
        assert projection(body) == ("alice", MINUTE)

    @pytest.mark.parametrize(
        "text",
        [
            *(
                "",
                "now",
                "1700000000",
                "20260220",
                "2026-02-21",
                "2026-02-30T00:00:00Z",
                "2026-02-20T24:00:00Z",
            ),
            *(
                "2026-02-20T14:00:60Z",
                "2026-02-20T14:00:00+25:00",
                "2026-02-20T14:00:00+05:99",
                "2026-02-20T14:00:00-2400",
                "2026-02-20T14:00:00Z\n",
                "0000-01-01T00:00Z",
            ),
        ],
    )
    def test_an_invalid_instant_is_refused_without_echoing_it(self, text: str) -> None:
        error = refusal(dump(document(candles=[CANDLE | {"timestamp": text}])))
        assert (error.detail[0]["type"], error.detail[0]["loc"][-1]) == ("datetime", "timestamp")
        assert not text or text not in error.detail[0]["msg"]

    def test_a_time_without_offset_is_utc_in_any_local_time_zone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TZ", "Asia/Kolkata")
        time.tzset()
        try:
            body = dump(document(candles=[CANDLE | {"timestamp": "2026-02-20T14:00:07"}]))
            assert parse_request(body).series["BTC"].times[0] == datetime(2026, 2, 20, 14, 0, 7, tzinfo=UTC)
        finally:
            monkeypatch.undo()
            time.tzset()

    def test_a_numeric_timestamp_is_refused(self) -> None:
        assert refusal(dump(document(candles=[CANDLE | {"timestamp": 1_700_000_000}]))).status == 422


class TestNames:
    """camelCase, snake_case, defaults, and unknown members."""

    def test_snake_case_is_read_like_camel_case(self) -> None:
        snake = {
            "schema_version": "1.0",
            "request_id": "r",
            "agent_id": "alice",
            "portfolio": {
                "cash": 1,
                "total_value": 2,
                "positions": [{"symbol": "BTC", "quantity": 3, "average_price": 4}],
            },
            "candles": [],
        }
        camel = {
            "schemaVersion": "1.0",
            "requestId": "r",
            "agentId": "alice",
            "portfolio": {
                "cash": 1,
                "totalValue": 2,
                "positions": [{"symbol": "BTC", "quantity": 3, "averagePrice": 4}],
            },
            "candles": [],
        }
        assert parse_request(dump(snake)) == parse_request(dump(camel))
        assert projection(dump(snake)) == projection(dump(camel)) == ("alice", None)

    def test_unknown_members_are_ignored(self) -> None:
        extra = document(future={"a": [1]}, candles=[CANDLE | {"trades": 7}])
        known, both = (parse_request(dump(body)) for body in (document(), extra))
        assert both.series["BTC"][:3] == known.series["BTC"][:3]
        assert both.portfolio == known.portfolio

    @pytest.mark.parametrize("sent", [{}, {"requestId": None}])
    def test_a_missing_request_id_becomes_a_fresh_uuid(self, sent: dict[str, None]) -> None:
        first, second = (parse_request(dump(document(**sent))).request_id for _ in range(2))
        assert uuid.UUID(first).version == 4
        assert first != second

    @pytest.mark.parametrize("sent", [{}, {"instructions": None}])
    def test_instructions_may_be_missing(self, sent: dict[str, None]) -> None:
        assert parse_request(dump(document(**sent))).agent_id == "alice"

    def test_escaped_text_is_decoded(self, make_body: Callable[..., bytes]) -> None:
        text = "co\u00fbt > 0 + 'x' \U0001f680"
        assert parse_request(make_body(count=20, agent=text)).agent_id == text

    def test_another_major_schema_version_is_refused(self) -> None:
        assert refusal(dump(document(schemaVersion="2.0"))).detail[0]["loc"] == ["body", "schemaVersion"]

    @pytest.mark.parametrize("name", ["agentId", "portfolio", "candles"])
    def test_each_required_member_is_named_when_missing(self, name: str) -> None:
        error = refusal(dump({key: value for key, value in document().items() if key != name}))
        assert error.detail == ({"type": "missing", "loc": ["body", name], "msg": "Field required"},)

    def test_a_byte_order_mark_is_ignored(self, make_body: Callable[..., bytes]) -> None:
        sent = make_body(count=20)
        assert parse_request(b"\xef\xbb\xbf" + sent).portfolio == parse_request(sent).portfolio
        assert projection(b"\xef\xbb\xbf" + sent) == projection(sent)


class TestRefusals:
    """Errors give the location and never echo the body."""

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"[]", b"null", b"1", b'"x"', b"{} x", b"\xff\xfe", b"\xef\xbb\xbf{}"]
    )
    def test_anything_but_a_json_object_is_refused(self, body: bytes) -> None:
        assert refusal(body).status == 422
        with pytest.raises(MalformedBody):
            projection(body)

    def test_deep_nesting_is_400(self) -> None:
        deep = dump(document())[:-1] + b',"x":' + b"[" * 5000 + b"]" * 5000 + b"}"
        error = refusal(deep)
        assert (error.status, error.slug) == (400, "nested-too-deep")

    @pytest.mark.parametrize(("before", "after"), [(b"[", b"]"), (b'{"x":', b"}")])
    @pytest.mark.parametrize("member", ["future", "requestId", "portfolio"])
    def test_the_depth_limit_is_201_levels_and_ignores_brackets_in_strings(
        self, before: bytes, after: bytes, member: str
    ) -> None:
        """The limit does not depend on the Python version or the stack, and holds in unknown members too."""
        text = b'"[[[[\\"{{{{"'

        def nested(levels: int) -> bytes:
            value = before * (levels - 1) + text + after * (levels - 1)
            return dump(document())[:-1] + f',"{member}":'.encode() + value + b"}"

        assert parse_request(nested(201)) if member == "future" else refusal(nested(201)).status == 422
        assert refusal(nested(202)).status == 400

    def test_invalid_utf8_in_an_unknown_member_is_refused(self) -> None:
        for camel in (True, False):  # camelCase is read directly, snake_case after renaming
            sent = document() if camel else document(request_id="r")
            assert refusal(dump(sent)[:-1] + b',"x":"\xff"}').detail[0]["type"] == "json_invalid"

    def test_a_lone_surrogate_is_refused(self) -> None:
        assert refusal(dump(document(agentId="\ud800"))).detail[0]["type"] == "json_invalid"

    def test_errors_do_not_echo_the_body(self) -> None:
        secret = "hunter2-" * 20
        bad = document(agentId=[secret], candles=[dict.fromkeys(CANDLE, secret) | {secret: 1}])
        bad["portfolio"] = {"cash": secret, "totalValue": {secret: 1}, "positions": secret}
        error = refusal(dump(bad))
        assert len(error.detail) == 1
        assert "hunter2" not in f"{error} {error!r} {error.detail}"

    def test_errors_of_a_huge_bad_body_are_short(self) -> None:
        error = refusal(dump(document(candles=[{}] * 100_000)))
        assert {item["loc"][2] for item in error.detail} == {0}
        assert len(dump(error.detail)) < 1_000


class TestProjection:
    """The projection agrees with the full reading of every accepted body."""

    def test_the_projection_ignores_request_id_portfolio_and_prices(
        self, make_body: Callable[..., bytes]
    ) -> None:
        first = make_body(count=20)
        second = make_body(count=50, request="other", total_value="7", closes={"BTC": [1.0] * 30})
        assert projection(first) == projection(second) == projection_of(parse_request(second))

    def test_the_projection_has_the_agent_and_the_newest_minute(
        self, make_body: Callable[..., bytes]
    ) -> None:
        base = projection(make_body(count=20))
        assert projection(make_body(count=20, agent="bob")) != base
        later = datetime(2026, 2, 20, 14, 1, tzinfo=UTC)
        assert projection(make_body(count=20, newest=later)) == (base[0], MINUTE + 1)

    def test_the_projection_ignores_seconds(self) -> None:
        late = dump(document(candles=[CANDLE | {"timestamp": "2026-02-20T14:00:59.9999999Z"}]))
        assert projection(late) == ("alice", MINUTE)

    def test_the_last_duplicate_member_wins_in_both_readers(self) -> None:
        body = dump(document())[:-1] + b',"agentId":"bob"}'
        assert projection(body) == projection_of(parse_request(body)) == ("bob", MINUTE)

    def test_an_invalid_earlier_duplicate_member_is_ignored_by_both_readers(self) -> None:
        body = b'{"agentId":[7],"candles":null,"portfolio":1,' + dump(document())[1:]
        assert projection(body) == projection_of(parse_request(body)) == ("alice", MINUTE)

    @given(
        agent=st.text(min_size=1, max_size=20),
        times=st.lists(
            st.datetimes(timezones=st.integers(-840, 840).map(lambda m: timezone(timedelta(minutes=m)))),
            max_size=5,
        ),
        camel=st.booleans(),
    )
    def test_projection_and_full_reading_agree(self, agent: str, times: list[datetime], camel: bool) -> None:
        sent = document(candles=[CANDLE | {"timestamp": time.isoformat()} for time in times])
        sent.pop("agentId")
        body = dump(sent | {"agentId" if camel else "agent_id": agent})
        try:
            request = parse_request(body)
        except MalformedBody:  # a lone surrogate
            with pytest.raises(MalformedBody):
                projection(body)
        else:
            assert projection(body) == projection_of(request)
            epoch = datetime(1970, 1, 1, tzinfo=UTC)
            minutes = [(time - epoch) // timedelta(minutes=1) for time in times]
            assert projection(body) == (agent, max(minutes, default=None))

    @given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
    def test_random_bytes_are_refused_as_malformed(self, body: bytes) -> None:
        for read in (parse_request, projection):
            with pytest.raises(MalformedBody):
                read(body)


def answer(
    orders: tuple[Order, ...] = (),
    signals: tuple[Signal, ...] = (),
    reasoning: str = "No trading signals",
    **changes: Any,
) -> bytes:
    return encode_answer(
        Decision(orders, signals, reasoning, asset_decisions=(), skipped={}),
        **{
            "model_version": "1.0.0",
            "request_id": "r",
            "agent_id": "a",
            "created_at": datetime(2026, 2, 20, 14, 0, 0, 123_456, tzinfo=timezone(timedelta(hours=1))),
        }
        | changes,
    )


class TestAnswer:
    """The bytes of an answer, read by a strict JSON parser."""

    def test_all_members_are_present_even_when_empty(self) -> None:
        assert json.loads(answer()) == {
            "schemaVersion": "1.0",
            "modelVersion": "1.0.0",
            "requestId": "r",
            "agentId": "a",
            "createdAt": "2026-02-20T13:00:00.123Z",
            "orders": [],
            "signals": [],
            "reasoning": "No trading signals",
        }

    @given(st.decimals(min_value="0.00001", max_value=1000, places=8))
    def test_a_quantity_is_a_json_number_without_exponent(self, quantity: Decimal) -> None:
        order = Order(asset_symbol="BTC", side="BUY", quantity=quantity)
        body = answer(orders=(order,)).decode()
        token = body.partition('"quantity":')[2].partition(",")[0]
        assert set(token) <= set("0123456789.")
        assert Decimal(token) == quantity
        assert len(token.partition(".")[2]) <= 8
        assert '"limitPrice":null' in body

    @given(
        value=st.floats(allow_nan=False, allow_infinity=False),
        text=st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    )
    def test_finite_values_and_any_text_round_trip(self, value: float, text: str) -> None:
        signal = Signal(feature=text, value=value, rule=text, fired=True, contribution="neutral")
        body = answer(signals=(signal,), reasoning=text, request_id=text, agent_id=text)
        read = json.loads(body, parse_constant=pytest.fail)
        assert read["signals"] == [
            {"feature": text, "value": value, "rule": text, "fired": True, "contribution": "neutral"}
        ]
        assert (read["reasoning"], read["requestId"], read["agentId"]) == (text, text, text)

    def test_contributions_are_present_only_when_given_even_if_empty(self) -> None:
        assert "contributions" not in json.loads(answer())
        assert json.loads(answer(contributions=()))["contributions"] == []
        why = Contribution(asset_symbol="BTC", feature="rsi_14", log_odds=-0.25)
        read = json.loads(answer(contributions=(why,)))["contributions"]
        assert read == [{"assetSymbol": "BTC", "feature": "rsi_14", "logOdds": -0.25}]

    @pytest.mark.parametrize(
        "quantity", [Decimal(0), Decimal(-1), Decimal("1000.00000001"), Decimal("NaN"), Decimal("1e-9")]
    )
    def test_an_order_with_a_quantity_outside_the_limits_raises(self, quantity: Decimal) -> None:
        with pytest.raises(ValueError, match="quantity"):
            Order(asset_symbol="BTC", side="BUY", quantity=quantity)

    def test_an_encoded_answer_has_the_members_of_the_schema(self) -> None:
        order = Order(asset_symbol="ETH", side="SELL", quantity=Decimal("0.00001000"))
        signal = Signal(feature="f", value=0.5, rule="r", fired=False, contribution="bearish")
        _, schemas = msgspec.json.schema_components([PredictResponse])
        schema = schemas["PredictResponse"]
        read = json.loads(answer(orders=(order,), signals=(signal,)))
        assert set(read) == set(schema["required"]) == set(schema["properties"]) - {"contributions"}
        why = Contribution(asset_symbol="ETH", feature="f", log_odds=-0.5)
        read = json.loads(answer(orders=(order,), signals=(signal,), contributions=(why,)))
        assert set(read) == set(schema["properties"])
        for member, name in (("orders", "Order"), ("signals", "Signal"), ("contributions", "Contribution")):
            promised = schemas[name]
            assert set(read[member][0]) == set(promised["properties"]) == set(promised["required"])
        assert schemas["Order"]["properties"]["quantity"]["type"] == "number"


def test_money_in_the_request_schema_is_a_number_or_a_string() -> None:
    _, schemas = msgspec.json.schema_components([PredictRequest], schema_hook=money_schema)
    assert list(schemas["PredictRequest"]["properties"]) == [
        *("schemaVersion", "requestId", "agentId", "portfolio", "candles", "instructions")
    ]
    assert schemas["PredictRequest"]["required"] == ["agentId", "portfolio", "candles"]
    for name, member in (("Candle", "open"), ("Candle", "close"), ("Portfolio", "cash")):
        kinds = schemas[name]["properties"][member]["anyOf"]
        assert [kind["type"] for kind in kinds] == ["number", "string"]
