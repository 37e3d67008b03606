"""Eleven indicators, compared with their definitions written as loops and with the libraries ta and TA-Lib."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import talib
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ta.momentum import RSIIndicator
from ta.trend import MACD, SMAIndicator
from ta.volatility import BollingerBands

from ml_api.trading.indicators import FEATURES, MIN_CANDLES, FloatArray, compute

Series = Sequence[float]


def ema(values: Series, alpha: float) -> list[float]:
    out = [values[0]]
    for value in values[1:]:
        out.append((1 - alpha) * out[-1] + alpha * value)
    return out


def mean(values: Series) -> float:
    return statistics.fmean(values)


def reference(c: Series, v: Series) -> dict[str, float]:
    """The definitions, candle by candle, without code of the implementation."""
    n = len(c)
    up = down = 0.0
    for before, now in itertools.pairwise(c):
        up = up * 13 / 14 + max(now - before, 0) / 14
        down = down * 13 / 14 + max(before - now, 0) / 14
    fast, slow = ema(c, 2 / 13), ema(c, 2 / 27)
    line = [a - b for a, b in zip(fast, slow, strict=True)][25:]
    macd = line[-1] if n >= 26 else 0.0
    signal = ema(line, 2 / 10)[-1] if n >= 34 else 0.0
    returns = [now / before - 1 for before, now in itertools.pairwise(c)]
    volume = mean(v[-7:])
    return {
        "sma_7": mean(c[-7:]),
        "sma_21": mean(c[-21:]),
        "rsi_14": 100.0 if down == 0 else 100 - 100 / (1 + up / down),
        "macd": macd,
        "macd_signal": signal,
        "macd_diff": macd - signal if n >= 34 else 0.0,
        "bb_width": 4 * statistics.pstdev(c[-20:]) / c[-1],
        "returns_1": c[-1] / c[-2] - 1,
        "returns_7": c[-1] / c[-8] - 1,
        "volatility_7": statistics.stdev(returns[-7:]),
        "volume_ratio": v[-1] / volume if volume > 0 else 1.0,
    }


def indicators(closes: Series | FloatArray, volumes: Series | FloatArray) -> dict[str, float]:
    return dict(zip(FEATURES, compute([*map(float, closes)], [*map(float, volumes)]), strict=True))


def random_walk(n: int, *, seed: int = 3, start: float = 64_000.0) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(seed)
    closes = start * np.exp(np.cumsum(rng.normal(0, 0.006, n)))
    return closes.tolist(), rng.uniform(500, 1500, n).tolist()


def assert_same(ours: dict[str, float], expected: dict[str, float], scale: float) -> None:
    """Equal to a relative 1e-9, or to 1e-12 of the unit: the price, 100 for RSI, 1 for ratios."""
    for name, value in expected.items():
        unit = scale if name.startswith(("sma", "macd")) else 100 if name == "rsi_14" else 1
        assert ours[name] == pytest.approx(value, rel=1e-9, abs=1e-12 * unit), name


@pytest.mark.parametrize("n", [20, 21, 25, 26, 27, 33, 34, 35, 60, 100, 500])
def test_each_indicator_matches_its_definition_at_every_critical_length(n: int) -> None:
    closes, volumes = random_walk(n)
    assert_same(indicators(closes, volumes), reference(closes, volumes), max(closes))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 1e6), st.floats(0, 1e6)), min_size=MIN_CANDLES, max_size=90))
def test_each_indicator_matches_its_definition_for_any_prices(candles: list[tuple[float, float]]) -> None:
    closes, volumes = [c for c, _ in candles], [v for _, v in candles]
    ours, expected = indicators(closes, volumes), reference(closes, volumes)
    # Ratios of prices that differ a millionfold are not of the order of 1: compare them by the largest ratio.
    ratios = max(closes) / min(closes)
    for name, value in expected.items():
        unit = max(closes) if name.startswith(("sma", "macd")) else 100 if name == "rsi_14" else ratios
        assert ours[name] == pytest.approx(value, rel=1e-9, abs=1e-11 * unit), name


@given(st.floats(1e-3, 1e3), st.integers(MIN_CANDLES, 60))
def test_scaling_prices_scales_averages_and_keeps_ratios(factor: float, n: int) -> None:
    closes, volumes = random_walk(n)
    here, there = indicators(closes, volumes), indicators([c * factor for c in closes], volumes)
    for name in FEATURES:
        expected = here[name] * (factor if name.startswith(("sma", "macd")) else 1)
        assert there[name] == pytest.approx(expected, rel=1e-8, abs=1e-9 * factor), name


def ta_indicators(closes: Series, volumes: Series) -> dict[str, float]:
    """The newest row as `ta` computes it, whose averages start at the same candles."""
    close, volume = pd.Series(closes), pd.Series(volumes)
    macd, bands = MACD(close), BollingerBands(close, window=20, window_dev=2)
    returns = close.pct_change()
    columns = {
        "sma_7": SMAIndicator(close, window=7).sma_indicator(),
        "sma_21": SMAIndicator(close, window=21, fillna=True).sma_indicator(),
        "rsi_14": RSIIndicator(close, window=14).rsi(),
        "macd": macd.macd().fillna(0.0),
        "macd_signal": macd.macd_signal().fillna(0.0),
        "macd_diff": macd.macd_diff().fillna(0.0),
        "bb_width": (bands.bollinger_hband() - bands.bollinger_lband()) / close,
        "returns_1": returns,
        "returns_7": close.pct_change(7),
        "volatility_7": returns.rolling(7).std(),
        "volume_ratio": volume / volume.rolling(7).mean(),
    }
    return {name: float(column.iloc[-1]) for name, column in columns.items()}


@pytest.mark.parametrize("n", [20, 21, 25, 26, 27, 33, 34, 35, 60, 100, 500])
def test_every_indicator_matches_ta_at_every_critical_length(n: int) -> None:
    for seed in range(8):
        closes, volumes = random_walk(n, seed=seed)
        theirs = ta_indicators(closes, volumes)
        # pandas subtracts from running sums what leaves the window, which loses digits.
        for name, value in indicators(closes, volumes).items():
            unit = max(closes) if name.startswith(("sma", "macd")) else 100 if name == "rsi_14" else 1
            assert value == pytest.approx(theirs[name], rel=1e-9, abs=1e-11 * unit), name


def test_rsi_of_prices_that_never_fell_is_100_as_in_ta() -> None:
    rising = [float(c) for c in range(100, 140)]
    for closes in (rising, [100.0] * 40):
        assert indicators(closes, [1.0] * 40)["rsi_14"] == ta_indicators(closes, [1.0] * 40)["rsi_14"] == 100


def test_indicators_with_the_same_window_match_talib() -> None:
    closes, volumes = (np.array(column) for column in random_walk(100))
    ours = indicators(closes, volumes)
    upper, _, lower = talib.BBANDS(closes, timeperiod=20, nbdevup=2, nbdevdn=2)
    assert ours["sma_7"] == pytest.approx(talib.SMA(closes, 7)[-1], rel=1e-12)
    assert ours["sma_21"] == pytest.approx(talib.SMA(closes, 21)[-1], rel=1e-12)
    assert ours["bb_width"] == pytest.approx((upper[-1] - lower[-1]) / closes[-1], rel=1e-6)
    assert ours["returns_1"] == pytest.approx(talib.ROCP(closes, 1)[-1], rel=1e-12)
    assert ours["returns_7"] == pytest.approx(talib.ROCP(closes, 7)[-1], rel=1e-12)
    assert ours["volume_ratio"] == pytest.approx(volumes[-1] / talib.SMA(volumes, 7)[-1], rel=1e-12)


def test_rsi_and_macd_match_talib_on_a_thousand_candles() -> None:
    closes, volumes = (np.array(column) for column in random_walk(1_000))
    ours = indicators(closes, volumes)
    line, signal, difference = talib.MACD(closes, 12, 26, 9)
    assert ours["rsi_14"] == pytest.approx(talib.RSI(closes, 14)[-1], rel=1e-9)
    assert ours["macd"] == pytest.approx(line[-1], rel=1e-9)
    assert ours["macd_signal"] == pytest.approx(signal[-1], rel=1e-9)
    assert ours["macd_diff"] == pytest.approx(difference[-1], rel=1e-8)


def test_rsi_differs_from_talib_on_a_hundred_candles_by_less_than_one() -> None:
    closes, volumes = (np.array(column) for column in random_walk(100))
    ours, theirs = indicators(closes, volumes)["rsi_14"], talib.RSI(closes, 14)[-1]
    assert ours == pytest.approx(theirs, abs=1)
    assert ours != pytest.approx(theirs, rel=1e-6)


class TestExtremeSeries:
    """Inputs that a naive implementation divides by zero."""

    @given(st.floats(1e-8, 1e12), st.integers(MIN_CANDLES, 150))
    def test_flat_prices_give_rsi_100_and_zero_movement(self, price: float, n: int) -> None:
        ours = indicators([price] * n, [5.0] * n)
        assert ours["rsi_14"] == 100
        # Exactly zero: macd_diff is compared with 0, and a rounding error must not be a crossover.
        still = ("macd", "macd_signal", "macd_diff", "bb_width", "returns_1", "returns_7", "volatility_7")
        assert {name: ours[name] for name in still} == dict.fromkeys(still, 0.0)
        assert ours["volume_ratio"] == pytest.approx(1)

    def test_rsi_is_100_for_rising_and_0_for_falling_prices(self) -> None:
        rising = [float(c) for c in range(100, 140)]
        assert indicators(rising, [1.0] * 40)["rsi_14"] == 100
        assert indicators(rising[::-1], [1.0] * 40)["rsi_14"] == pytest.approx(0, abs=1e-12)

    def test_volume_ratio_is_1_without_any_volume(self) -> None:
        closes, _ = random_walk(40)
        assert indicators(closes, [0.0] * 40)["volume_ratio"] == 1
        assert indicators(closes, [9.0] * 33 + [0.0] * 7)["volume_ratio"] == 1

    def test_volume_ratio_is_0_if_the_last_volume_is_0(self) -> None:
        closes, _ = random_walk(40)
        assert indicators(closes, [9.0] * 39 + [0.0])["volume_ratio"] == 0

    @given(
        st.lists(
            st.tuples(
                st.floats(0, exclude_min=True, allow_infinity=False), st.floats(0, allow_infinity=False)
            ),
            min_size=MIN_CANDLES,
            max_size=60,
        )
    )
    @example([(5e-324, 0.0), (1.7e308, 1.7e308)] * 20)
    @example([(1.7e308, 1.7e308), (5e-324, 5e-324)] * 20)
    def test_extreme_prices_give_a_float_for_every_indicator(
        self, candles: list[tuple[float, float]]
    ) -> None:
        row = compute([close for close, _ in candles], [volume for _, volume in candles])
        assert [type(value) for value in row] == [float] * len(FEATURES)

    @pytest.mark.parametrize(("closes", "volumes"), [(19, 19), (0, 0), (20, 19), (30, 31)])
    def test_too_few_candles_or_unequal_columns_are_refused(self, closes: int, volumes: int) -> None:
        with pytest.raises(ValueError, match="at least 20"):
            compute([1.0] * closes, [1.0] * volumes)


def test_compute_does_not_change_its_inputs() -> None:
    closes, volumes = random_walk(50)
    before = closes.copy(), volumes.copy()
    compute(closes, volumes)
    assert (closes, volumes) == before
