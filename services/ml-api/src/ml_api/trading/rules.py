"""
The nine fixed rules on the indicators, which every answer lists as signals, and a decision by these rules only.

The client stores the rule texts, so they are part of the contract.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import gt, lt
from typing import Final

from ml_api.trading.indicators import FEATURES, Row
from ml_api.trading.types import Action, Direction, Signal

__all__ = ["RULES", "Rule", "rule_decision", "signals"]


@dataclass(frozen=True, slots=True)
class Rule:
    """A strict comparison: *feature* below (`lt`) or above (`gt`) *threshold* is a signal for *contribution*."""

    feature: str
    compare: Callable[[float, float], bool]
    threshold: float
    text: str
    contribution: Direction


RULES: Final = (
    Rule("rsi_14", lt, 40.0, "<40 = oversold zone", "bullish"),
    Rule("rsi_14", gt, 60.0, ">60 = overbought zone", "bearish"),
    Rule("macd_diff", gt, 0.0, ">0 = bullish crossover", "bullish"),
    Rule("macd_diff", lt, 0.0, "<0 = bearish crossover", "bearish"),
    Rule("returns_7", gt, 0.02, ">2% = uptrend", "bullish"),
    Rule("returns_7", lt, -0.02, "<-2% = downtrend", "bearish"),
    Rule("bb_width", gt, 0.1, ">10% = high volatility", "neutral"),
    Rule("returns_1", gt, 0.005, ">0.5% = short-term momentum up", "bullish"),
    Rule("returns_1", lt, -0.005, "<-0.5% = short-term momentum down", "bearish"),
)
_RULED: Final = tuple((rule, FEATURES.index(rule.feature)) for rule in RULES)  # each rule with its column
_COLUMNS: Final = frozenset(column for _, column in _RULED)  # the columns that rules use
_RSI, _MACD_DIFF = FEATURES.index("rsi_14"), FEATURES.index("macd_diff")


def signals(row: Row) -> tuple[Signal, ...]:
    """Apply all nine rules to one row of finite numbers; rules that do not fire are listed too."""
    rounded = {column: round(row[column], 4) + 0.0 for column in _COLUMNS}  # + 0.0: no negative zero
    found = [
        Signal(
            rule.feature,
            rounded[column],
            rule.text,
            rule.compare(row[column], rule.threshold),
            rule.contribution,
        )
        for rule, column in _RULED
    ]
    return tuple(found)


def rule_decision(row: Row, row_signals: Sequence[Signal]) -> tuple[Action, float]:
    """
    Decide without a model: an extreme or confirmed RSI first, else the majority of fired signals.

    Returns:
        The action and a fixed confidence: 0.7, 0.55 or 0.5, which is not a probability.
    """
    rsi, macd_diff = row[_RSI], row[_MACD_DIFF]
    if rsi < 35 or (rsi < 45 and macd_diff > 0):
        return "BUY", 0.7
    if rsi > 65 or (rsi > 55 and macd_diff < 0):
        return "SELL", 0.7
    fired = [signal.contribution for signal in row_signals if signal.fired]
    lead = fired.count("bullish") - fired.count("bearish")
    if lead == 0:
        return "HOLD", 0.5
    return ("BUY" if lead > 0 else "SELL"), 0.55
