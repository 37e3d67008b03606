"""The nine fixed signals, and the decision of the rules without a model."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest

from ml_api.trading.indicators import FEATURES, Row
from ml_api.trading.rules import rule_decision, signals

QUIET = dict.fromkeys(FEATURES, 0.0) | {"rsi_14": 50.0}


def row(**values: float) -> Row:
    return tuple((QUIET | values)[name] for name in FEATURES)


def fired(values: Row) -> list[tuple[str, str]]:
    return [(signal.rule, signal.contribution) for signal in signals(values) if signal.fired]


def test_all_nine_signals_are_listed_in_order_even_if_not_fired() -> None:
    assert [(s.feature, s.rule, s.contribution, s.fired) for s in signals(row())] == [
        ("rsi_14", "<40 = oversold zone", "bullish", False),
        ("rsi_14", ">60 = overbought zone", "bearish", False),
        ("macd_diff", ">0 = bullish crossover", "bullish", False),
        ("macd_diff", "<0 = bearish crossover", "bearish", False),
        ("returns_7", ">2% = uptrend", "bullish", False),
        ("returns_7", "<-2% = downtrend", "bearish", False),
        ("bb_width", ">10% = high volatility", "neutral", False),
        ("returns_1", ">0.5% = short-term momentum up", "bullish", False),
        ("returns_1", "<-0.5% = short-term momentum down", "bearish", False),
    ]


@pytest.mark.parametrize(
    ("feature", "threshold", "toward", "rule", "contribution"),
    [
        ("rsi_14", 40.0, -1, "<40 = oversold zone", "bullish"),
        ("rsi_14", 60.0, 1, ">60 = overbought zone", "bearish"),
        ("macd_diff", 0.0, 1, ">0 = bullish crossover", "bullish"),
        ("macd_diff", 0.0, -1, "<0 = bearish crossover", "bearish"),
        ("returns_7", 0.02, 1, ">2% = uptrend", "bullish"),
        ("returns_7", -0.02, -1, "<-2% = downtrend", "bearish"),
        ("bb_width", 0.1, 1, ">10% = high volatility", "neutral"),
        ("returns_1", 0.005, 1, ">0.5% = short-term momentum up", "bullish"),
        ("returns_1", -0.005, -1, "<-0.5% = short-term momentum down", "bearish"),
    ],
)
def test_a_rule_fires_strictly_beyond_its_threshold(
    feature: str, threshold: float, toward: int, rule: str, contribution: str
) -> None:
    assert fired(row(**{feature: threshold})) == []
    beyond = math.nextafter(threshold, toward * math.inf)
    assert fired(row(**{feature: beyond})) == [(rule, contribution)]


def test_a_rule_compares_the_value_before_rounding() -> None:
    signal = next(s for s in signals(row(returns_7=0.020_000_1)) if s.rule == ">2% = uptrend")
    assert (signal.value, signal.fired) == (0.02, True)


def test_signal_values_are_rounded_to_four_places() -> None:
    values = {
        s.feature: s.value for s in signals(row(returns_7=0.123_456_7, macd_diff=-2.000_06, rsi_14=39.99996))
    }
    assert (values["returns_7"], values["macd_diff"], values["rsi_14"]) == (0.1235, -2.0001, 40.0)


def test_a_value_that_rounds_to_zero_has_no_sign() -> None:
    value = signals(row(macd_diff=-1e-9))[3].value
    assert str(value) == "0.0"


@pytest.mark.parametrize("extreme", [-sys.float_info.max, -5e-324, 5e-324, sys.float_info.max])
def test_the_signals_of_a_finite_row_are_finite(extreme: float) -> None:
    assert all(math.isfinite(signal.value) for signal in signals((extreme,) * len(FEATURES)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rsi_14": 34.9}, ("BUY", 0.7)),
        ({"rsi_14": 44.9, "macd_diff": 0.1}, ("BUY", 0.7)),
        ({"rsi_14": 45.0, "macd_diff": 0.1}, ("BUY", 0.55)),
        ({"rsi_14": 65.1}, ("SELL", 0.7)),
        ({"rsi_14": 55.1, "macd_diff": -0.1}, ("SELL", 0.7)),
        ({"rsi_14": 55.0, "macd_diff": -0.1}, ("SELL", 0.55)),
        ({"rsi_14": 35.0}, ("BUY", 0.55)),
        ({"rsi_14": 65.0}, ("SELL", 0.55)),
        ({"returns_1": 0.01}, ("BUY", 0.55)),
        ({"returns_7": -0.05, "returns_1": -0.01, "macd_diff": 1.0}, ("SELL", 0.55)),
        ({"returns_7": -0.05, "macd_diff": 1.0}, ("HOLD", 0.5)),
        ({"bb_width": 0.5}, ("HOLD", 0.5)),
        ({}, ("HOLD", 0.5)),
    ],
)
def test_rule_decision_follows_an_extreme_rsi_then_the_majority_of_signals(
    values: dict[str, Any], expected: tuple[str, float]
) -> None:
    numbers = row(**values)
    assert rule_decision(numbers, signals(numbers)) == expected
