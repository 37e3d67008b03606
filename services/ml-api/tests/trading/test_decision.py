"""From candles to orders: the row of indicators, the action, the quantity and the reasoning."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_api.predict.answer import encode_answer
from ml_api.predict.contract import DecisionRequest, parse_request
from ml_api.trading.decision import Decision, Predict, compute_features, decide
from ml_api.trading.indicators import FEATURES, FloatArray, Row, compute
from ml_api.trading.types import ASSETS

Make = Callable[..., bytes]


def predicting(*probabilities: tuple[float, float, float]) -> Predict:
    """A model with these probabilities of SELL, HOLD and BUY, asset by asset."""

    def predict(rows: list[Row]) -> FloatArray:
        return np.array([probabilities[i % len(probabilities)] for i in range(len(rows))])

    return predict


SELL, HOLD, BUY = (0.5, 0.3, 0.2), (0.3, 0.4, 0.3), (0.2, 0.34, 0.46)


def decide_request(
    request: DecisionRequest, predict: Predict | None, *, cap_to_portfolio: bool = False
) -> Decision:
    return decide(
        compute_features(request.series), request.portfolio, predict, cap_to_portfolio=cap_to_portfolio
    )


def decide_body(body: bytes, *probabilities: tuple[float, float, float], cap: bool = False) -> Decision:
    return decide_request(parse_request(body), predicting(*(probabilities or (BUY,))), cap_to_portfolio=cap)


def edited(body: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    document = json.loads(body)
    change(document)
    return json.dumps(document).encode()


def nearly_newest_first(candle: dict[str, Any]) -> int:
    """A sort key for candles of 30 minutes: newest first, with each pair of neighbours exchanged."""
    half_hours = int(datetime.fromisoformat(candle["timestamp"]).timestamp()) // 1800
    return -(half_hours ^ 1)


class TestTheRow:
    """The newest candle decides, in any order of the list."""

    def test_candles_are_sorted_by_time(self, make_body: Make) -> None:
        newest_first = make_body()
        oldest_first = edited(newest_first, lambda d: d["candles"].reverse())
        shuffled = edited(newest_first, lambda d: random.Random(3).shuffle(d["candles"]))
        neighbours = edited(newest_first, lambda d: d["candles"].sort(key=nearly_newest_first))
        here = decide_body(newest_first)
        for there in (decide_body(oldest_first), decide_body(shuffled), decide_body(neighbours)):
            assert here.orders == there.orders
            assert here.asset_decisions == there.asset_decisions

    def test_timestamps_with_different_offsets_are_compared_as_instants(self, make_body: Make) -> None:
        def move(document: dict[str, Any]) -> None:
            for candle in document["candles"][::2]:
                candle["timestamp"] = candle["timestamp"].replace("+00:00", "Z")
            first = document["candles"][0]  # the newest, now written in another zone
            first["timestamp"] = first["timestamp"].replace("T14:00:00Z", "T04:00:00-10:00")

        assert decide_body(make_body()).orders == decide_body(edited(make_body(), move)).orders

    def test_the_row_equals_the_indicators_of_all_candles(self, make_body: Make) -> None:
        body = make_body(assets=["BTC"])
        newest_last = json.loads(body, parse_float=Decimal)["candles"][::-1]
        columns = [[float(candle[name]) for candle in newest_last] for name in ("close", "volume")]
        (asset_decision,) = decide_request(parse_request(body), predicting(BUY)).asset_decisions
        assert asset_decision.row == compute(*columns)
        assert asset_decision.price == Decimal(newest_last[-1]["close"])

    def test_the_model_is_called_once_with_btc_before_eth(self, make_body: Make) -> None:
        seen: list[list[Row]] = []

        def predict(rows: list[Row]) -> FloatArray:
            seen.append(rows)
            return np.array([SELL, BUY])

        decision = decide_request(parse_request(make_body(assets=["ETH", "DOGE", "BTC"])), predict)
        assert [order.asset_symbol for order in decision.orders] == ["BTC", "ETH"]
        assert seen == [[asset_decision.row for asset_decision in decision.asset_decisions]]

    def test_other_assets_are_ignored(self, make_body: Make) -> None:
        assert decide_body(make_body(assets=["DOGE", "btc"])).reasoning == "No trading signals"

    def test_the_model_is_not_called_without_a_row(self, make_body: Make) -> None:
        decision = decide_request(parse_request(make_body(count=19)), lambda rows: pytest.fail("called"))
        assert decision.orders == ()

    @pytest.mark.parametrize(
        "bad",
        [
            np.ones((1, 3)),
            np.ones((2, 2)),
            np.ones(2),
        ],
    )
    def test_a_prediction_of_the_wrong_shape_raises(self, make_body: Make, bad: FloatArray) -> None:
        with pytest.raises(ValueError, match="a float64"):
            decide_request(parse_request(make_body()), lambda rows: bad)

    @pytest.mark.parametrize("overflowed", [math.nan, math.inf, -math.inf])
    def test_an_asset_without_a_finite_prediction_is_skipped_alone(
        self, make_body: Make, overflowed: float
    ) -> None:
        probabilities = np.array([(overflowed, 0.3, 0.2), BUY])
        decision = decide_request(parse_request(make_body()), lambda rows: probabilities)
        assert decision.skipped == {"BTC": "the model has no finite answer to its indicators"}
        assert [one.asset for one in decision.asset_decisions] == ["ETH"]
        assert [order.asset_symbol for order in decision.orders] == ["ETH"]
        assert "BTC skipped: the model has no finite answer to its indicators" in decision.reasoning


class TestTheAction:
    """The largest probability, the first on ties."""

    @pytest.mark.parametrize(
        ("probabilities", "side"),
        [
            ((0.4, 0.3, 0.3), "SELL"),
            ((0.3, 0.3, 0.4), "BUY"),
            ((0.4, 0.2, 0.4), "SELL"),
            ((0.2, 0.4, 0.4), None),
            ((0.4, 0.4, 0.2), "SELL"),
        ],
    )
    def test_the_largest_probability_decides_and_the_first_on_ties(
        self, make_body: Make, probabilities: tuple[float, float, float], side: str | None
    ) -> None:
        decision = decide_body(make_body(assets=["BTC"]), probabilities)
        assert [order.side for order in decision.orders] == ([side] if side else [])

    def test_the_fixed_rules_decide_without_a_model(self, make_body: Make) -> None:
        rising = [100.0 + i for i in range(40)]
        decision = decide_request(parse_request(make_body(assets=["BTC"], closes={"BTC": rising})), None)
        assert (decision.asset_decisions[0].action, decision.asset_decisions[0].confidence) == ("SELL", 0.7)
        assert decision.reasoning == "BTC: SELL (confidence: 70%)"


class TestSizing:
    """A tenth of the total value, times the confidence up to 0.9, at the newest close."""

    @pytest.mark.parametrize(("confidence", "share"), [(0.5, "0.5"), (0.9, "0.9"), (0.97, "0.9")])
    def test_the_quantity_is_a_tenth_of_the_value_times_the_confidence_up_to_90_percent(
        self, make_body: Make, confidence: float, share: str
    ) -> None:
        request = parse_request(make_body(assets=["BTC"], total_value="123456.78"))
        rest = (1 - confidence) / 2
        (order,) = decide_request(request, predicting((confidence, rest, rest))).orders
        exact = Decimal("123456.78") * Decimal("0.1") * Decimal(share) / request.series["BTC"].exact_close(0)
        assert order.quantity == exact.quantize(Decimal("1e-8"), rounding=ROUND_HALF_EVEN)
        assert order.limit_price is None

    def test_the_quantity_is_rounded_half_to_even(self, make_body: Make) -> None:
        closes = [4000.0] * 39 + [4096.0]  # 100000 * 0.1 * 0.9 / 4096 = 2.197265625
        (order,) = decide_body(make_body(assets=["BTC"], closes={"BTC": closes}), (0.95, 0.03, 0.02)).orders
        assert order.quantity == Decimal("2.19726562")

    @pytest.mark.parametrize(
        ("total", "price", "quantity"),
        [
            ("0.0002", 1.0, "0.00001000"),
            ("0.00019999", 1.0, None),
            ("0", 1.0, None),
            ("-5000", 1.0, None),
            ("20000", 1.0, "1000.00000000"),
            ("20000.0000002", 1.0, None),
            ("79228162514264337593543950335", 1e-8, None),
        ],
    )
    def test_an_order_outside_the_quantity_limits_is_omitted_with_the_reason(
        self, make_body: Make, total: str, price: float, quantity: str | None
    ) -> None:
        decision = decide_body(
            make_body(assets=["BTC"], total_value=total, closes={"BTC": [price] * 40}), SELL
        )
        assert [str(order.quantity) for order in decision.orders] == ([quantity] if quantity else [])
        if quantity is None:
            side = "above 1000" if Decimal(total) > 1 else "below 0.00001"
            assert decision.reasoning == f"No trading signals; BTC SELL not ordered: quantity {side}"

    def test_cash_and_positions_are_ignored_by_default(self, make_body: Make) -> None:
        rich, poor = make_body(), make_body(cash="0", positions="")
        assert decide_body(rich, SELL, BUY).orders == decide_body(poor, SELL, BUY).orders


class TestTheCap:
    """With `cap_to_portfolio` no order exceeds the cash or the positions."""

    def test_a_sale_is_capped_to_the_held_quantity(self, make_body: Make) -> None:
        held = '{"symbol":"BTC","quantity":0.01,"averagePrice":1},{"symbol":"BTC","quantity":0.02,"averagePrice":1}'
        (order,) = decide_body(make_body(assets=["BTC"], positions=held), SELL, cap=True).orders
        assert order.quantity == Decimal("0.03")

    def test_a_capped_sale_is_rounded_down(self, make_body: Make) -> None:
        held = '{"symbol":"BTC","quantity":0.010000009,"averagePrice":1}'
        (order,) = decide_body(make_body(assets=["BTC"], positions=held), SELL, cap=True).orders
        assert order.quantity == Decimal("0.01000000")

    def test_an_asset_without_position_is_not_sold(self, make_body: Make) -> None:
        held = '{"symbol":"ETH","quantity":5,"averagePrice":1}'
        decision = decide_body(make_body(positions=held), SELL, cap=True)
        assert [order.asset_symbol for order in decision.orders] == ["ETH"]

    def test_a_sale_does_not_change_the_cash_for_purchases(self, make_body: Make) -> None:
        request = parse_request(make_body(cash="1000"))
        sale, purchase = decide_request(request, predicting(SELL, BUY), cap_to_portfolio=True).orders
        price = request.series["ETH"].exact_close(0)
        assert (sale.side, purchase.side) == ("SELL", "BUY")
        assert purchase.quantity == (1000 / price).quantize(Decimal("1e-8"), ROUND_DOWN)

    def test_a_sale_without_positions_is_omitted_with_a_reason(self, make_body: Make) -> None:
        decision = decide_body(make_body(assets=["BTC"], positions=""), SELL, cap=True)
        assert decision.orders == ()
        assert "BTC SELL not ordered" in decision.reasoning

    def test_purchases_together_do_not_exceed_the_cash(self, make_body: Make) -> None:
        request = parse_request(make_body(cash="5000"))
        decision = decide_request(request, predicting(BUY), cap_to_portfolio=True)
        prices = {asset_decision.asset: asset_decision.price for asset_decision in decision.asset_decisions}
        costs = [order.quantity * prices[order.asset_symbol] for order in decision.orders]
        assert len(costs) == 2
        assert Decimal(4999) < sum(costs) <= Decimal(5000)


class TestSkipping:
    """An asset without valid indicators is skipped with the reason."""

    @pytest.mark.parametrize(
        ("count", "usable"), [(1, 0), (6, 0), (7, 0), (19, 0), (20, 2), (26, 2), (33, 2), (34, 2)]
    )
    def test_an_asset_with_fewer_than_20_candles_is_skipped(
        self, make_body: Make, count: int, usable: int
    ) -> None:
        decision = decide_body(make_body(count=count))
        assert len(decision.asset_decisions) == len(decision.orders) == usable
        assert len(decision.signals) == 9 * usable
        if not usable:
            reason = f"{count} candles, 20 needed"
            assert decision.reasoning == f"No trading signals; BTC skipped: {reason}; ETH skipped: {reason}"
            assert decision.skipped == {"BTC": reason, "ETH": reason}

    def test_one_skipped_asset_does_not_affect_the_other(self, make_body: Make) -> None:
        decision = decide_body(make_body(closes={"BTC": [5.0] * 12}))
        assert decision.reasoning == "ETH: BUY (confidence: 46%); BTC skipped: 12 candles, 20 needed"

    @pytest.mark.parametrize(("where", "value"), [(0, 0), (5, -1), (-1, 0), (3, "1e400"), (0, "1e-400")])
    def test_a_close_that_is_not_a_positive_finite_price_skips_the_asset(
        self, make_body: Make, where: int, value: object
    ) -> None:
        body = edited(make_body(assets=["BTC"]), lambda d: d["candles"][where].update(close=value))
        assert (
            decide_body(body).reasoning
            == "No trading signals; BTC skipped: a close is not a positive finite price"
        )

    @pytest.mark.parametrize("value", [-0.1, "1e400"])
    def test_a_negative_or_infinite_volume_skips_the_asset(self, make_body: Make, value: object) -> None:
        body = edited(make_body(assets=["BTC"]), lambda d: d["candles"][50].update(volume=value))
        assert "BTC skipped: a volume is negative or not finite" in decide_body(body).reasoning

    def test_duplicated_candles_skip_the_asset(self, make_body: Make) -> None:
        def double(document: dict[str, Any]) -> None:
            document["candles"] = [candle for candle in document["candles"] for _ in range(2)]

        body = edited(make_body(assets=["BTC"]), double)
        assert decide_body(body).reasoning == "No trading signals; BTC skipped: two candles of one time"

    def test_two_candles_of_one_instant_with_different_offsets_skip_the_asset(self, make_body: Make) -> None:
        def repeat(document: dict[str, Any]) -> None:
            copy = dict(document["candles"][7])
            copy["timestamp"] = copy["timestamp"].replace("+00:00", "Z")
            document["candles"].append(copy)

        body = edited(make_body(assets=["BTC"]), repeat)
        assert decide_body(body).reasoning == "No trading signals; BTC skipped: two candles of one time"

    def test_extreme_prices_skip_the_asset(self, make_body: Make) -> None:
        def stretch(document: dict[str, Any]) -> None:
            for age, candle in enumerate(document["candles"]):
                candle["close"] = "1e308" if age % 2 else "1e-300"

        assert "too extreme" in decide_body(edited(make_body(assets=["BTC"]), stretch)).reasoning

    @pytest.mark.parametrize(("age", "close"), [(0, "1e40"), (0, "1e300"), (7, "1e-30")])
    def test_an_indicator_that_a_dotnet_decimal_cannot_hold_skips_the_asset(
        self, make_body: Make, age: int, close: str
    ) -> None:
        """The client reads every signal's value as a decimal, and would lose the whole answer."""

        def leap(document: dict[str, Any]) -> None:
            document["candles"][age]["close"] = close

        decision = decide_body(edited(make_body(assets=["BTC"]), leap))
        assert "BTC skipped: prices or volumes too extreme" in decision.reasoning
        assert decision.signals == ()

    def test_an_asset_without_any_volume_is_decided(self, make_body: Make) -> None:
        decision = decide_body(make_body(assets=["BTC"], volumes=[0.0] * 100), SELL)
        assert decision.asset_decisions[0].row[FEATURES.index("volume_ratio")] == 1
        assert decision.reasoning == "BTC: SELL (confidence: 50%)"

    def test_an_asset_with_flat_prices_is_decided(self, make_body: Make) -> None:
        decision = decide_body(make_body(assets=["BTC"], closes={"BTC": [100.0] * 40}), SELL)
        assert decision.asset_decisions[0].row[FEATURES.index("rsi_14")] == 100
        assert len(decision.orders) == 1


class TestReasoning:
    """The reasoning text of a decision."""

    def test_the_reasoning_names_only_assets_with_an_order(self, make_body: Make) -> None:
        assert (
            decide_body(make_body(), SELL, BUY).reasoning
            == "BTC: SELL (confidence: 50%); ETH: BUY (confidence: 46%)"
        )
        assert decide_body(make_body(), HOLD, BUY).reasoning == "ETH: BUY (confidence: 46%)"

    def test_hold_gives_signals_and_no_orders(self, make_body: Make) -> None:
        decision = decide_body(make_body(), HOLD)
        assert decision.reasoning == "No trading signals"
        assert (len(decision.orders), len(decision.signals)) == (0, 18)

    def test_a_request_without_candles_gives_no_trading_signals(self, make_body: Make) -> None:
        decision = decide_body(make_body(assets=[]))
        assert (decision.reasoning, decision.skipped) == ("No trading signals", {})


NUMBER = st.decimals(
    allow_nan=False, allow_infinity=False, min_value=Decimal("-1e25"), max_value=Decimal("1e25")
)
TIME = st.datetimes(timezones=st.just(UTC))


@settings(max_examples=100, deadline=None)
@given(
    columns=st.lists(
        st.tuples(st.sampled_from([*ASSETS, "XRP"]), TIME, NUMBER | st.just(Decimal(1)), NUMBER), max_size=90
    ),
    spread=st.booleans(),
    money=st.tuples(NUMBER, NUMBER),
    cap=st.booleans(),
    model=st.sampled_from([None, predicting(SELL, BUY), predicting(HOLD)]),
)
def test_any_valid_request_gives_a_strictly_valid_answer(
    columns: list[tuple[str, datetime, Decimal, Decimal]],
    spread: bool,
    money: tuple[Decimal, Decimal],
    cap: bool,
    model: Predict | None,
) -> None:
    def valid(price: Decimal) -> Decimal:  # half of the runs have only valid prices
        return abs(price) + 1 if spread else price

    candles = ",".join(
        f'{{"symbol":"{s}","timestamp":"{t.isoformat()}","open":{p:f},"high":{p:f},"low":{p:f},"close":{valid(p):f},'
        f'"volume":{valid(v):f}}}'
        for s, t, p, v in columns
    )
    portfolio = f'{{"cash":{money[0]:f},"totalValue":{money[1]:f}}}'
    request = parse_request(f'{{"agentId":"a","portfolio":{portfolio},"candles":[{candles}]}}'.encode())
    decision = decide_request(request, model, cap_to_portfolio=cap)
    answer = encode_answer(
        decision,
        model_version="1",
        request_id="r",
        agent_id="a",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    read = json.loads(answer, parse_constant=pytest.fail)
    assert len(read["signals"]) == 9 * len(decision.asset_decisions)
    assert all(0 < order["quantity"] <= 1000 for order in read["orders"])
    assert all(math.isfinite(signal["value"]) for signal in read["signals"])
    assert {v.asset for v in decision.asset_decisions} | set(decision.skipped) == {
        symbol for symbol, *_ in columns
    } & set(ASSETS)


def test_a_decision_is_immutable(make_body: Make) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        decide_body(make_body()).reasoning = ""  # type: ignore[misc]
