"""
A quick reading of the body that the client sends all day; whatever else a body may be, the contract reads it.

`predict.contract` says what a request is, and reads every one digit for digit. Of most digits a decision needs the
nearest float64 alone, and that takes a fifth of the time. So bodies of one shape are read here: camelCase, no unknown
member, numbers that are numbers, prices above 0, and candles behind all but the instructions. What comes of it is
exactly what the contract would give; for any other body the contract is asked, which also has all the refusals to
itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Generic, Literal, TypeVar

import msgspec

from ml_api.predict import contract
from ml_api.predict.candles import NOT_QUICK
from ml_api.predict.contract import PredictRequest
from ml_api.predict.market import divide, market_of
from ml_api.trading.decision import Outlook, PortfolioLike

__all__ = ["QuickRequest", "projection", "read_request"]


@dataclass(frozen=True, slots=True)
class QuickRequest:
    """A `contract.PredictRequest`, as far as a decision needs it."""

    request_id: str
    agent_id: str
    portfolio: PortfolioLike
    outlook: Outlook


def read_request(body: bytes) -> QuickRequest | PredictRequest:
    """
    Read one request, the quick way if that will do.

    Raises:
        MalformedBody: As `contract.parse_request`, which gives it.
    """
    try:
        before, place = divide(body)
        sent, money = _sent(before), _exact(before).portfolio
        outlook = market_of(body, place).outlook
    except NOT_QUICK:
        return contract.parse_request(body)
    return QuickRequest(sent.request_id or contract.fresh_id(), sent.agent_id, money, outlook)


def projection(body: bytes) -> tuple[str, int | None]:
    """
    What `contract.projection` gives, the quick way if that will do.

    Raises:
        MalformedBody: As `contract.projection`, which gives it.
    """
    try:
        before, place = divide(body)
        sent, market = _sent(before), market_of(body, place)
    except NOT_QUICK:
        return contract.projection(body)
    return sent.agent_id, market.newest_minute


# Far from the largest that the contract takes, so that no rounding decides.
_Amount = Annotated[float, msgspec.Meta(ge=-1e28, le=1e28)]
_NumberT = TypeVar("_NumberT")


class _Position(msgspec.Struct, Generic[_NumberT], forbid_unknown_fields=True, rename="camel", gc=False):
    symbol: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    quantity: _NumberT
    average_price: _NumberT


class _Portfolio(msgspec.Struct, Generic[_NumberT], forbid_unknown_fields=True, rename="camel", gc=False):
    cash: _NumberT
    total_value: _NumberT
    positions: list[_Position[_NumberT]] = []


class _Sent(msgspec.Struct, forbid_unknown_fields=True, rename="camel", gc=False):
    agent_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    portfolio: _Portfolio[_Amount]  # JSON numbers: a Decimal would be read from a string too
    candles: tuple[()]
    schema_version: Literal["1.0"] = "1.0"
    request_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    instructions: str | None = None


class _Exact(msgspec.Struct, gc=False):
    portfolio: _Portfolio[Decimal]  # the same once more, to the last digit: it is money


_sent = msgspec.json.Decoder(_Sent).decode
_exact = msgspec.json.Decoder(_Exact).decode
