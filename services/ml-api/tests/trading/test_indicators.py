"""Eleven indicators, each held against its definition spelled out as a loop, and against two public libraries."""

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
    """The definitions, one candle at a time, sharing no code with the implementation."""
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


def walk(n: int, *, seed: int = 3, start: float = 64_000.0) -> tuple[list[float], list[float]]:
    chance = np.random.default_rng(seed)
    closes = start * np.exp(np.cumsum(chance.normal(0, 0.006, n)))
    return closes.tolist(), chance.uniform(500, 1500, n).tolist()


def assert_same(ours: dict[str, float], expected: dict[str, float], scale: float) -> None:
    """Equal to 1e-9 of what each indicator is measured in: prices of the price, RSI of 100, ratios of 1."""
    for name, value in expected.items():
        unit = scale if name.startswith(("sma", "macd")) else 100 if name == "rsi_14" else 1
        assert ours[name] == pytest.approx(value, rel=1e-9, abs=1e-12 * unit), name


@pytest.mark.parametrize("n", [20, 21, 25, 26, 27, 33, 34, 35, 60, 100, 500])
def test_each_indicator_is_its_definition_at_every_length_that_changes_it(n: int) -> None:
    closes, volumes = walk(n)
    assert_same(indicators(closes, volumes), reference(closes, volumes), max(closes))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 1e6), st.floats(0, 1e6)), min_size=MIN_CANDLES, max_size=90))
def test_each_indicator_is_its_definition_for_any_prices(candles: list[tuple[float, float]]) -> None:
    closes, volumes = [c for c, _ in candles], [v for _, v in candles]
    ours, expected = indicators(closes, volumes), reference(closes, volumes)
    # Ratios of prices that jump a million times over have no absolute scale of 1: hold them to their own size.
    ratios = max(closes) / min(closes)
    for name, value in expected.items():
        unit = max(closes) if name.startswith(("sma", "macd")) else 100 if name == "rsi_14" else ratios
        assert ours[name] == pytest.approx(value, rel=1e-9, abs=1e-11 * unit), name


@given(st.floats(1e-3, 1e3), st.integers(MIN_CANDLES, 60))
def test_prices_in_another_currency_leave_every_ratio_alone(factor: float, n: int) -> None:
    closes, volumes = walk(n)
    here, there = indicators(closes, volumes), indicators([c * factor for c in closes], volumes)
    for name in FEATURES:
        expected = here[name] * (factor if name.startswith(("sma", "macd")) else 1)
        assert there[name] == pytest.approx(expected, rel=1e-8, abs=1e-9 * factor), name


def of_ta(closes: Series, volumes: Series) -> dict[str, float]:
    """The newest row as `ta` has it, whose averages start where the contract has them start."""
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
def test_ta_agrees_on_every_indicator_at_every_length_that_changes_it(n: int) -> None:
    for seed in range(8):
        closes, volumes = walk(n, seed=seed)
        theirs = of_ta(closes, volumes)
        # pandas keeps running sums and subtracts what leaves the window: the digits that this loses are its own.
        for name, value in indicators(closes, volumes).items():
            unit = max(closes) if name.startswith(("sma", "macd")) else 100 if name == "rsi_14" else 1
            assert value == pytest.approx(theirs[name], rel=1e-9, abs=1e-11 * unit), name


def test_ta_too_reads_prices_that_never_fell_as_rsi_100() -> None:
    rising = [float(c) for c in range(100, 140)]
    for closes in (rising, [100.0] * 40):
        assert indicators(closes, [1.0] * 40)["rsi_14"] == of_ta(closes, [1.0] * 40)["rsi_14"] == 100


def test_talib_agrees_where_its_window_is_the_same() -> None:
    closes, volumes = (np.array(column) for column in walk(100))
    ours = indicators(closes, volumes)
    upper, _, lower = talib.BBANDS(closes, timeperiod=20, nbdevup=2, nbdevdn=2)
    assert ours["sma_7"] == pytest.approx(talib.SMA(closes, 7)[-1], rel=1e-12)
    assert ours["sma_21"] == pytest.approx(talib.SMA(closes, 21)[-1], rel=1e-12)
    assert ours["bb_width"] == pytest.approx((upper[-1] - lower[-1]) / closes[-1], rel=1e-6)
    assert ours["returns_1"] == pytest.approx(talib.ROCP(closes, 1)[-1], rel=1e-12)
    assert ours["returns_7"] == pytest.approx(talib.ROCP(closes, 7)[-1], rel=1e-12)
    assert ours["volume_ratio"] == pytest.approx(volumes[-1] / talib.SMA(volumes, 7)[-1], rel=1e-12)


def test_talib_agrees_once_the_seed_is_forgotten() -> None:
    closes, volumes = (np.array(column) for column in walk(1_000))
    ours = indicators(closes, volumes)
    line, signal, difference = talib.MACD(closes, 12, 26, 9)
    assert ours["rsi_14"] == pytest.approx(talib.RSI(closes, 14)[-1], rel=1e-9)
    assert ours["macd"] == pytest.approx(line[-1], rel=1e-9)
    assert ours["macd_signal"] == pytest.approx(signal[-1], rel=1e-9)
    assert ours["macd_diff"] == pytest.approx(difference[-1], rel=1e-8)


def test_talib_seeds_rsi_otherwise_on_a_hundred_candles() -> None:
    closes, volumes = (np.array(column) for column in walk(100))
    ours, theirs = indicators(closes, volumes)["rsi_14"], talib.RSI(closes, 14)[-1]
    assert ours == pytest.approx(theirs, abs=1)
    assert ours != pytest.approx(theirs, rel=1e-6)


class TestOddSeries:
    """Inputs that divide by zero in other hands."""

    @given(st.floats(1e-8, 1e12), st.integers(MIN_CANDLES, 150))
    def test_flat_prices_read_as_rsi_100_and_no_movement_at_all(self, price: float, n: int) -> None:
        ours = indicators([price] * n, [5.0] * n)
        assert ours["rsi_14"] == 100
        # Exactly: macd_diff is held strictly against 0, and a rounding error of either sign is no crossover.
        still = ("macd", "macd_signal", "macd_diff", "bb_width", "returns_1", "returns_7", "volatility_7")
        assert {name: ours[name] for name in still} == dict.fromkeys(still, 0.0)
        assert ours["volume_ratio"] == pytest.approx(1)

    def test_only_rises_read_as_rsi_100_and_only_falls_as_0(self) -> None:
        rising = [float(c) for c in range(100, 140)]
        assert indicators(rising, [1.0] * 40)["rsi_14"] == 100
        assert indicators(rising[::-1], [1.0] * 40)["rsi_14"] == pytest.approx(0, abs=1e-12)

    def test_no_volume_at_all_is_a_neutral_ratio(self) -> None:
        closes, _ = walk(40)
        assert indicators(closes, [0.0] * 40)["volume_ratio"] == 1
        assert indicators(closes, [9.0] * 33 + [0.0] * 7)["volume_ratio"] == 1

    def test_a_last_volume_of_zero_is_a_ratio_of_zero(self) -> None:
        closes, _ = walk(40)
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
    def test_prices_at_the_edge_of_float64_give_a_row_finite_or_not(
        self, candles: list[tuple[float, float]]
    ) -> None:
        row = compute([close for close, _ in candles], [volume for _, volume in candles])
        assert [type(value) for value in row] == [float] * len(FEATURES)

    @pytest.mark.parametrize(("closes", "volumes"), [(19, 19), (0, 0), (20, 19), (30, 31)])
    def test_too_few_candles_or_unequal_columns_are_refused(self, closes: int, volumes: int) -> None:
        with pytest.raises(ValueError, match="at least 20"):
            compute([1.0] * closes, [1.0] * volumes)


def test_the_inputs_are_left_alone() -> None:
    closes, volumes = walk(50)
    before = closes.copy(), volumes.copy()
    compute(closes, volumes)
    assert (closes, volumes) == before
