"""
The candles of a body, as a decision needs them: each number as the nearest float64, and exactly those that it asks for.

The shape that is read here is the one of `ml_api.predict.quick`; any other raises, and the contract reads it instead.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cached_property, partial
from itertools import islice
from typing import Annotated

import msgspec
import numpy as np

from ml_api.predict.types import parse_instant
from ml_api.trading.candle_series import Bars

__all__ = ["NOT_QUICK", "Candles"]

NOT_QUICK = (msgspec.MsgspecError, ValueError)
"""What a text of another shape raises; the first is not always one of the second."""


class Candles:
    """
    A list of candles.

    Args:
        text: A JSON object, `candles` its first member.
    Raises:
        NOT_QUICK: Another shape.

    Attributes:
        newest_minute: The newest candle's, since 1970 UTC; None where there is no candle.
    """

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._candles = _candles(text).candles
        self._columns = _columns(self._candles)
        times = [max(times) for times, _, _ in self._columns.values()]
        self.newest_minute = max(times) // _MINUTE if times else None
        # As a float64 a number with an exponent beyond that of a decimal is infinite, which msgspec refuses, or 0:
        # that can only be a volume, the one that counts or one that came before it.
        has_no_zero = all(all(volumes) for _, _, volumes in self._columns.values())
        doubtful = not has_no_zero or _may_repeat_volumes(text, len(self._candles))
        if doubtful and _has_long_exponent(text):
            raise ValueError("an exponent beyond that of a decimal")

    def bars(self, asset: str) -> Bars:
        """Those of one asset."""
        return Bars(*self._columns.get(asset, ([], [], [])), partial(self._exact_close, asset))

    def _exact_close(self, asset: str, position: int) -> Decimal:
        places = (place for place, candle in enumerate(self._candles) if candle.symbol == asset)
        place = next(islice(places, position, None))
        texts = self._first_texts if place < len(self._first_texts) else self._texts
        return _close(texts[place]).close

    @cached_property
    def _first_texts(self) -> list[msgspec.Raw]:
        return _first_texts(self._text)

    @cached_property
    def _texts(self) -> list[msgspec.Raw]:
        return _texts(self._text).candles


# Above 0, because a 0 may stand for a number too small for a decimal, which the contract refuses.
_Price = Annotated[float, msgspec.Meta(gt=0)]


class _Candle(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    symbol: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    timestamp: str
    open: _Price
    high: _Price
    low: _Price
    close: _Price
    volume: float


class _Candles(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    candles: list[_Candle]
    instructions: str | None = None


class _Texts(msgspec.Struct, gc=False):
    candles: list[msgspec.Raw]


class _Close(msgspec.Struct, gc=False):
    close: Decimal


_candles = msgspec.json.Decoder(_Candles).decode
_texts = msgspec.json.Decoder(_Texts).decode
_close = msgspec.json.Decoder(_Close).decode

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE = 60_000_000  # microseconds


class _Moments(dict[str, int]):
    """What timestamps mean, in microseconds since 1970 UTC. Assets share them, and so do successive requests."""

    def __missing__(self, text: str) -> int:
        if len(self) >= 4096:
            self.clear()
        self[text] = moment = (parse_instant(text) - _EPOCH) // timedelta(microseconds=1)
        return moment


_moments = _Moments()

_Columns = tuple[list[int], list[float], list[float]]
"""The times, closes and volumes of one asset; times in microseconds since 1970 UTC."""


def _columns(candles: list[_Candle]) -> Mapping[str, _Columns]:
    """The columns of each symbol; ValueError where a timestamp is none."""
    columns: defaultdict[str, _Columns] = defaultdict(lambda: ([], [], []))
    for candle in candles:
        times, closes, volumes = columns[candle.symbol]
        times.append(_moments[candle.timestamp])
        closes.append(candle.close)
        volumes.append(candle.volume)
    return columns


_FIRST = 2  # the newest candle of each asset, in the client's order


def _first_texts(text: bytes) -> list[msgspec.Raw]:
    """
    The texts of a market's first two candles, or of all; *text* has been read as `_candles`.

    All between the second candle and the end of them is cut out, which saves most of a second reading: from the second
    } to the last ], if no [ follows that could open another list. Either may belong to a string instead of the
    structure. But then that string is cut in two, and one quotation mark is missing: what follows is read inside out,
    a member's name without its quotation marks or a string without an end. And if both do, no ] is left to end the
    list. Neither is JSON, and the whole text is read.
    """
    if text.rfind(b"[") == text.find(b"["):
        end = 0
        for _ in range(_FIRST):
            end = text.find(b"}", end) + 1
        try:
            return _texts(text[:end] + text[text.rfind(b"]") :]).candles
        except NOT_QUICK:
            pass
    return _texts(text).candles


_V = ord("v")


def _may_repeat_volumes(text: bytes, candles: int) -> bool:
    """Whether volumes may be given that do not count: no other name has a v, unless it is written with an escape."""
    end = text.rfind(b"]")  # or behind it, which does no harm
    # numpy counts a byte several times faster than bytes.count.
    said = np.count_nonzero(np.frombuffer(text, np.uint8, end) == _V)
    return int(said) > candles or text.find(b"\\", 0, end) >= 0


# Written with either letter; two searches for one byte are quicker than one for a class.
_LONG_EXPONENTS = (re.compile(rb"e[-+]?[0-9]{9}").search, re.compile(rb"E[-+]?[0-9]{9}").search)


def _has_long_exponent(text: bytes) -> bool:
    return any(search(text) for search in _LONG_EXPONENTS)
