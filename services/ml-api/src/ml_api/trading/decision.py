"""
Decides on one request: candles in; orders, signals and reasons out. No clock, no randomness, no I/O.

An asset with unusable candles is skipped, and the reasoning says why. Nothing is computed from invalid data, and no
older candle is used instead of the newest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Context, Decimal, localcontext
from itertools import chain
from operator import gt
from typing import Protocol

from ml_api.trading.indicators import MIN_CANDLES, FloatArray, Row, compute
from ml_api.trading.rules import rule_decision, signals
from ml_api.trading.types import (
    ASSETS,
    CLASSES,
    MAX_QUANTITY,
    QUANTITY_PLACES,
    Action,
    Asset,
    CandleSeries,
    Order,
    Signal,
)

__all__ = [
    "Decision",
    "MarketFeatures",
    "PortfolioLike",
    "PositionLike",
    "Predict",
    "AssetDecision",
    "decide",
    "compute_features",
]

Predict = Callable[[list[Row]], FloatArray | list[FloatArray]]
"""Maps rows to probabilities, float64[3] per row in the order of `CLASSES`; called once per request."""

_STAKE = Decimal("0.1")  # share of the portfolio's total value at a confidence of 1
_MAX_CONFIDENCE = 0.9
_MIN_QUANTITY, _MAX_QUANTITY = Decimal("0.00001"), Decimal(MAX_QUANTITY)  # the client drops orders outside
_PLACES = Decimal(1).scaleb(-QUANTITY_PLACES)
_LARGEST_INDICATOR = 7.9e28  # signals show indicators, which the client reads as .NET decimals
_NOT_FINITE = "the model has no finite answer to its indicators"
_MONEY = Context(prec=60)  # enough digits to round a quotient of money and price only once


@dataclass(frozen=True, slots=True)
class AssetDecision:
    """The decision about one asset."""

    asset: Asset
    row: Row
    price: Decimal
    action: Action
    confidence: float


@dataclass(frozen=True, slots=True)
class MarketFeatures:
    """
    The features of the candles of one moment; they are the same for every agent.

    Attributes:
        rows: Asset, indicators and newest close of each usable asset, in the order of `ASSETS`.
        signals: The nine fixed rules, applied to each of these rows.
        skipped: The reason for each asset that has unusable candles.
    """

    rows: tuple[tuple[Asset, Row, Decimal], ...]
    signals: tuple[tuple[Signal, ...], ...]
    skipped: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision on one request; *skipped* maps each skipped asset to the reason."""

    orders: tuple[Order, ...]
    signals: tuple[Signal, ...]
    reasoning: str
    asset_decisions: tuple[AssetDecision, ...]
    skipped: Mapping[str, str]


class PositionLike(Protocol):
    """The agent's holding of one asset; `contract.Position` is one."""

    @property
    def symbol(self) -> str:
        """The asset."""

    @property
    def quantity(self) -> Decimal:
        """The quantity held."""


class PortfolioLike(Protocol):
    """The agent's money; `contract.Portfolio` is one."""

    @property
    def cash(self) -> Decimal:
        """The cash left to buy with."""

    @property
    def total_value(self) -> Decimal:
        """The value on which order sizes are based."""

    @property
    def positions(self) -> Sequence[PositionLike]:
        """The holdings that can be sold."""


class _Unusable(Exception):
    """The candles of one asset cannot be used; the message says why."""


def compute_features(series: Mapping[str, CandleSeries]) -> MarketFeatures:
    """Compute the indicators and signals of each traded asset of *series*, the candles of each asset in a request."""
    rows: list[tuple[Asset, Row, Decimal]] = []
    skipped: dict[str, str] = {}
    for asset in ASSETS:
        if asset not in series:
            continue
        try:
            rows.append((asset, *_newest_row(series[asset])))
        except _Unusable as reason:
            skipped[asset] = str(reason)
    return MarketFeatures(tuple(rows), tuple(signals(row) for _, row, _ in rows), skipped)


def decide(
    market: MarketFeatures,
    portfolio: PortfolioLike,
    predict: Predict | None,
    *,
    cap_to_portfolio: bool = False,
) -> Decision:
    """
    Choose an action for each asset, and the size of its order.

    Args:
        predict: The model, called once with one row per usable asset; None: decide by the fixed rules.
        cap_to_portfolio: Limit BUY to the cash left, and SELL to the quantity held. Without it, cash and holdings are
            ignored, and the caller must check the risk.
    Raises:
        ValueError: The model's answer is not float64[3] for each row. An asset whose answer is not finite is skipped.
    """
    if predict is None:
        conclusions: Sequence[tuple[Action, float] | None] = [
            rule_decision(row, own) for (_, row, _), own in zip(market.rows, market.signals, strict=True)
        ]
    else:
        conclusions = _conclude(predict, [row for _, row, _ in market.rows])
    decided: list[AssetDecision] = []
    skipped = dict(market.skipped)
    for (asset, row, price), conclusion in zip(market.rows, conclusions, strict=True):
        if conclusion is None:
            skipped[asset] = _NOT_FINITE
        else:
            decided.append(AssetDecision(asset, row, price, *conclusion))
    orders, traded, refused = _size(decided, portfolio, cap_to_portfolio)
    remarks = [f"{asset} skipped: {reason}" for asset, reason in skipped.items()] + refused
    return Decision(
        orders=tuple(orders),
        signals=tuple(chain.from_iterable(market.signals)),
        reasoning="; ".join((traded or ["No trading signals"]) + remarks),
        asset_decisions=tuple(decided),
        skipped=skipped,
    )


def _newest_row(series: CandleSeries) -> tuple[Row, Decimal]:
    """Return the indicators of the newest candle, and its close; may raise _Unusable."""
    times, closes, volumes = series.times, series.closes, series.volumes
    n = len(times)
    if n < MIN_CANDLES:
        raise _Unusable(f"{n} candles, {MIN_CANDLES} needed")
    if all(map(gt, times, times[1:])):  # newest first, as the client sends them
        newest, closes, volumes = 0, closes[::-1], volumes[::-1]
    else:
        oldest_first = sorted(range(n), key=times.__getitem__)
        if len(set(times)) < n:
            raise _Unusable("two candles of one time")
        newest = oldest_first[-1]
        closes, volumes = [closes[i] for i in oldest_first], [volumes[i] for i in oldest_first]
    # Checked as float64, which the indicators use: 1e400 is a finite decimal, but an infinite float64.
    if not (min(closes) > 0 and _are_finite(closes)):
        raise _Unusable("a close is not a positive finite price")
    if not (min(volumes) >= 0 and _are_finite(volumes)):
        raise _Unusable("a volume is negative or not finite")
    row = compute(closes, volumes)
    if not all(abs(indicator) < _LARGEST_INDICATOR for indicator in row):  # nor NaN
        raise _Unusable("prices or volumes too extreme for the indicators")
    return row, series.exact_close(newest)


def _are_finite(values: Sequence[float]) -> bool:
    """Whether *values*, none negative, are all finite; first by their sum, which is faster."""
    return sum(values) < math.inf or max(values) < math.inf


def _conclude(predict: Predict, rows: list[Row]) -> list[tuple[Action, float] | None]:
    if not rows:
        return []
    answers = predict(rows)
    if len(answers) != len(rows):
        raise _nonsense(f"{len(answers)} answers to {len(rows)} rows")
    return [_most_probable(probabilities) for probabilities in answers]


def _most_probable(probabilities: FloatArray) -> tuple[Action, float] | None:
    """Return the most probable action, the first of equals, and its probability; None if a number is not finite."""
    values = probabilities.tolist()
    if probabilities.shape != (len(CLASSES),):
        raise _nonsense(f"{values!r}")
    if not all(map(math.isfinite, values)):
        return None
    confidence = max(values)
    return CLASSES[values.index(confidence)], confidence


def _nonsense(answer: str) -> ValueError:
    return ValueError(f"the model must answer a float64[{len(CLASSES)}] for each row, not {answer}")


def _size(
    decided: Sequence[AssetDecision], portfolio: PortfolioLike, cap: bool
) -> tuple[list[Order], list[str], list[str]]:
    """Return the orders, a line of text per order, and a remark for each BUY or SELL without an order."""
    orders: list[Order] = []
    traded: list[str] = []
    refused: list[str] = []
    cash = portfolio.cash
    with localcontext(_MONEY):
        for one in decided:
            if one.action == "HOLD":
                continue
            quantity = _stake(portfolio.total_value, one)
            if cap and one.action == "BUY":
                quantity = min(quantity, cash / one.price)
            elif cap:
                held = (position.quantity for position in portfolio.positions if position.symbol == one.asset)
                quantity = min(quantity, sum(held, Decimal(0)))
            if (problem := _outside(quantity)) is not None:
                refused.append(f"{one.asset} {one.action} not ordered: {problem}")
                continue
            # A capped quantity must not be rounded up above the cap.
            quantity = quantity.quantize(_PLACES, rounding=ROUND_DOWN if cap else ROUND_HALF_EVEN)
            cash -= quantity * one.price if one.action == "BUY" else 0
            orders.append(Order(one.asset, one.action, quantity))
            traded.append(f"{one.asset}: {one.action} (confidence: {one.confidence:.0%})")
    return orders, traded, refused


def _stake(total_value: Decimal, one: AssetDecision) -> Decimal:
    # repr gives the shortest decimal of the confidence, such as 0.9, so that binary digits do not decide on rounding.
    share = Decimal(repr(min(one.confidence, _MAX_CONFIDENCE)))
    return total_value * _STAKE * share / one.price


def _outside(quantity: Decimal) -> str | None:
    if quantity < _MIN_QUANTITY:
        return f"quantity below {_MIN_QUANTITY:f}"
    if quantity > _MAX_QUANTITY:
        return f"quantity above {_MAX_QUANTITY}"
    return None
