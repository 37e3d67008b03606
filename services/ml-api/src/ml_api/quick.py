"""
A quick reading of the body that the client sends all day; whatever else a body may be, the contract reads it.

`ml_api.contract` says what a request is, and reads every one digit for digit. Of most digits a decision needs the
nearest float64 alone, and that takes a fifth of the time. So bodies of one shape are read here: ASCII, camelCase, no
unknown member, numbers that are numbers, and candles behind all but the instructions. What comes of it is exactly what
the contract would give; for any other body the contract is asked, which also has all the refusals to itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from ml_api import contract
from ml_api.contract import Portfolio, PredictRequest
from ml_api.market import NOT_QUICK, Market, divide, market_of
from ml_api.trading.decision import Outlook

__all__ = ["QuickRequest", "projection", "read_request"]


@dataclass(frozen=True, slots=True)
class QuickRequest:
    """A `contract.PredictRequest`, as far as a decision needs it."""

    request_id: str
    agent_id: str
    portfolio: Portfolio
    outlook: Outlook


def read_request(body: bytes) -> QuickRequest | PredictRequest:
    """
    Read one request, the quick way if that will do.

    Raises:
        MalformedBody: As `contract.parse_request`, which gives it.
    """
    try:
        sent, market = _read(body)
        # MalformedBody is a ValueError; the contract's own says where in the whole body the mistake is.
        _shape(sent.portfolio)
        portfolio = contract.parse_portfolio(bytes(sent.portfolio))
        return QuickRequest(sent.request_id or contract.fresh_id(), sent.agent_id, portfolio, market.outlook)
    except NOT_QUICK:
        return contract.parse_request(body)


def projection(body: bytes) -> tuple[str, int | None]:
    """
    What `contract.projection` gives, the quick way if that will do.

    As there, only bodies that are a request have to give the right one: of what else stands in a body, this looks
    past what is nested too deeply.

    Raises:
        MalformedBody: As `contract.projection`, which gives it.
    """
    try:
        sent, market = _read(body)
    except NOT_QUICK:
        return contract.projection(body)
    return sent.agent_id, market.newest_minute


class _Position(msgspec.Struct, forbid_unknown_fields=True, rename="camel", gc=False):
    symbol: str
    quantity: float
    average_price: float


class _Portfolio(msgspec.Struct, forbid_unknown_fields=True, rename="camel", gc=False):
    cash: float
    total_value: float
    positions: list[_Position] = []


class _Sent(msgspec.Struct, forbid_unknown_fields=True, rename="camel", gc=False):
    agent_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    portfolio: msgspec.Raw  # held against its shape, and then read digit by digit: it is money
    candles: tuple[()]
    schema_version: Literal["1.0"] = "1.0"
    request_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    instructions: str | None = None


_sent = msgspec.json.Decoder(_Sent).decode
_shape = msgspec.json.Decoder(_Portfolio).decode


def _read(body: bytes) -> tuple[_Sent, Market]:
    if not body.isascii():
        raise ValueError("not ASCII")  # the client escapes what is not; UTF-8 is the contract's to judge
    before, rest = divide(body)
    return _sent(before), market_of(rest)
