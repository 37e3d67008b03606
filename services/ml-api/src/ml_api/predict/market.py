"""
The end of a body, from its candles on: what all agents share that are asked for at the same moment.

Such requests differ in what stands before the candles: who asks, and with which money. So a body is read as two texts,
and what follows from the second is kept for the last few of them. One is known again by all its bytes; nothing is
taken for what it is not.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ml_api.predict.candles import Candles
from ml_api.trading.decision import Outlook, look

__all__ = ["Market", "divide", "market_of"]

_START = b'"candles":['


def divide(body: bytes) -> tuple[bytes, int]:
    """
    One object's text as two: what stands before its candles, with none of them; and where the rest begins.

    The rest becomes an object too with a { before it (`Market` does that). If both are JSON objects then *body* is one,
    and has the members of the first and then those of the second: up to the place of division a reader cannot tell
    *body* from the first, and from there on not from the second.

    Raises:
        ValueError: There is no list of candles, or nothing before it.
    """
    place = body.index(_START)
    return body[:place] + b'"candles":[]}', place


@dataclass(frozen=True, slots=True, eq=False)
class Market:
    """
    What a list of candles says.

    Attributes:
        rest: Where it stands: a JSON object without its {, `candles` its first member.
        newest_minute: The newest candle's, since 1970 UTC; None where there is no candle.
        outlook: What can be said about each asset.
    """

    rest: bytes
    newest_minute: int | None
    outlook: Outlook

    @classmethod
    def read(cls, rest: bytes) -> Market:
        """
        Read all that *rest* says, whether or not a replay would ask for it.

        At once, and not when a decision does ask: by then the candles would long have left the processor's caches.

        Raises:
            NOT_QUICK: As `ml_api.predict.candles.Candles`.
        """
        candles = Candles(b"{" + rest)
        return cls(rest, candles.newest_minute, look(candles.bars))


_recent: deque[Market] = deque(maxlen=64)  # as many as may be asked about at once
_KEPT = 131_072  # bytes of a text that is kept; a request has a quarter of it


def market_of(body: bytes, place: int) -> Market:
    """
    The market of *body* from *place* on, one of the last few if it was among them; raises NOT_QUICK as `Market.read`.

    Cost: where it was, a comparison of its bytes, and not even a copy of them; of others, of their first that differ.
    """
    length = len(body) - place
    for market in _recent:
        if len(market.rest) == length and body.endswith(market.rest):
            return market
    market = Market.read(body[place:])
    if length <= _KEPT:
        _recent.appendleft(market)
    return market
