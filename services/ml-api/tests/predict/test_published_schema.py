"""The reader accepts the same bodies as the published schema, and reads the same values as a plain JSON parser."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from ml_api.app import document_of
from ml_api.predict.contract import DecisionRequest, MalformedBody, parse_request, projection
from ml_api.settings import Settings

Text = str  # of JSON

LARGEST = Decimal(2**96 - 1)  # of .NET decimals

NUMBERS = [
    *("1", "0", "-1", "1.5", "0.10", "1e5", "1E-3", "64000.12500000", "9007199254740993", "-0.0", "1e-400"),
    *(
        '"1"',
        '"1.50"',
        '"-1e5"',
        '"+3"',
        r'"\u0031"',
        "12345678901234567890.000000001",
        "18446744073709551616",
    ),
]
NAMES = ['"alice"', '"BTC"', '"ETH"', '"\\u0041"', '"\\ud83d\\ude00"', '"é"']
TIMES = [
    *('"2026-02-20T14:00:00Z"', '"2026-02-20 14:00"', '"2026-02-20T15:00:00.9999999+0100"'),
    '"2026-02-20t14:00:59z"',
]
# Values that are valid for some members or for none. The schema does not restrict the calendar, the size of money,
# or, with the regular expressions of Python, a final line feed: other tests cover those.
ODD = [
    *(
        "null",
        "true",
        "[]",
        "{}",
        "[1]",
        '{"a":1}',
        '""',
        '"1_0"',
        '" 1"',
        '"NaN"',
        '"2.0"',
        '"1.12345"',
        "7",
    ),
    *('"now"', '"１"', f'"{"x" * 33}"', f'"{"x" * 129}"', f'"{"9" * 41}"', '"1."', "1e400", "9" * 400),
]
SNAKE = {
    "schemaVersion": "schema_version",
    "requestId": "request_id",
    "agentId": "agent_id",
    "totalValue": "total_value",
    "averagePrice": "average_price",
}
odd = st.sampled_from(ODD + NUMBERS + NAMES + TIMES)


@st.composite
def value(draw: st.DrawFn, usual: st.SearchStrategy[Text]) -> Text:
    """Usually one of *usual*, sometimes any value."""
    return draw(odd if draw(st.integers(0, 60)) == 0 else usual)


@st.composite
def objects(draw: st.DrawFn, members: dict[str, st.SearchStrategy[Text]]) -> Text:
    """An object with *members* in any order and spelling; some are repeated, missing or unknown."""
    written = []
    for name, usual in members.items():
        twist = draw(st.integers(0, 80))
        if twist == 0:
            continue
        spelled = SNAKE.get(name, name) if draw(st.integers(0, 9)) == 0 else name
        if twist == 1:
            written.append((draw(st.sampled_from([name, SNAKE.get(name, name)])), draw(odd)))
        written.append((spelled, draw(usual)))
    if draw(st.integers(0, 9)) == 0:
        written.append((draw(st.sampled_from(["future", "é", ""])), draw(odd)))
    if draw(st.booleans()):
        written = draw(st.permutations(written))
    return "{" + ", ".join(f'"{name}": {text}' for name, text in written) + "}"


def arrays(items: st.SearchStrategy[Text]) -> st.SearchStrategy[Text]:
    return st.lists(items, max_size=3).map(lambda texts: f"[{','.join(texts)}]")


number = value(st.sampled_from(NUMBERS))
name = value(st.sampled_from(NAMES))
time = value(st.sampled_from(TIMES))
position = objects({"symbol": name, "quantity": number, "averagePrice": number})
portfolio = objects({"cash": number, "totalValue": number, "positions": value(arrays(position))})
candle = objects(
    {"symbol": name, "timestamp": time} | dict.fromkeys(("open", "high", "low", "close", "volume"), number)
)
request = objects(
    {
        "schemaVersion": value(st.sampled_from(['"1.0"', '"1"'])),
        "requestId": value(st.sampled_from([*NAMES, "null"])),
        "agentId": name,
        "portfolio": value(portfolio),
        "candles": value(arrays(candle)),
        "instructions": value(st.sampled_from([*NAMES, "null", '""'])),
    }
)


@pytest.fixture(scope="module")
def published() -> Draft202012Validator:
    document = document_of(Settings.model_validate({"api_key": "the-api-key-of-the-tests"}))
    return Draft202012Validator(
        {"$ref": "#/components/schemas/PredictRequest", "components": document["components"]}
    )


def plainly_read(body: bytes) -> Any:
    """The body as `json` reads it, with camelCase names."""
    camel = {snake: name for name, snake in SNAKE.items()}

    def renamed(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        last = dict(pairs)
        return {camel.get(name, name): value for name, value in last.items() if camel.get(name) not in last}

    return json.loads(body, parse_float=Decimal, object_pairs_hook=renamed)


@settings(max_examples=400, deadline=None)
@given(text=request)
def test_bodies_are_accepted_or_refused_as_by_the_published_schema(
    published: Draft202012Validator, text: Text
) -> None:
    body = text.encode()
    expected = plainly_read(body)
    violations = [tuple(error.absolute_path) for error in published.iter_errors(expected)]
    beyond = not violations and not all(-LARGEST <= amount <= LARGEST for amount in money(expected))
    if violations or beyond:
        with pytest.raises(MalformedBody) as refused:
            parse_request(body)
        assert len(refused.value.detail) == 1
        assert '"' not in refused.value.detail[0]["msg"]
    else:
        read = parse_request(body)
        compare(read, expected)
        newest = max(
            (int(time.timestamp()) // 60 for one in read.series.values() for time in one.times),
            default=None,
        )
        assert projection(body) == (read.agent_id, newest)


def money(expected: Any) -> list[Decimal]:
    """The amounts of money, whose size the schema does not restrict."""
    portfolio = expected["portfolio"]
    held = [one[member] for one in portfolio.get("positions", []) for member in ("quantity", "averagePrice")]
    return [Decimal(amount) for amount in (portfolio["cash"], portfolio["totalValue"], *held)]


def compare(read: DecisionRequest, expected: dict[str, Any]) -> None:
    exact: Callable[[Any], Decimal] = Decimal
    assert read.agent_id == expected["agentId"]
    assert expected.get("requestId") in {None, read.request_id}
    held = [amount for one in read.portfolio.positions for amount in (one.quantity, one.average_price)]
    assert [read.portfolio.cash, read.portfolio.total_value, *held] == money(expected)
    symbols = [one["symbol"] for one in expected["portfolio"].get("positions", [])]
    assert [one.symbol for one in read.portfolio.positions] == symbols
    for symbol in {candle["symbol"] for candle in expected["candles"]}:
        own = [candle for candle in expected["candles"] if candle["symbol"] == symbol]
        series = read.series[symbol]
        assert series.closes == [float(exact(candle["close"])) for candle in own]
        assert series.volumes == [float(exact(candle["volume"])) for candle in own]
        assert [series.exact_close(place) for place in range(len(own))] == [
            exact(candle["close"]) for candle in own
        ]
