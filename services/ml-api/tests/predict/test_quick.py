"""The quick reading and the contract's own: the same request or refusal, whichever reads; and what is read quickly."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ml_api.predict import contract
from ml_api.predict.candles import Candles
from ml_api.predict.contract import MalformedBody, PredictRequest
from ml_api.predict.market import divide
from ml_api.predict.quick import QuickRequest, projection, read_request
from ml_api.trading.candle_series import Bars

Outcome = tuple[object, ...]


def outcome(read: Callable[[bytes], Any], body: bytes) -> Outcome:
    """What *read* makes of *body*."""
    try:
        request = read(body)
    except MalformedBody as error:
        return type(error), error.errors
    return request if isinstance(request, tuple) else described(request, body)


def bars_in(body: bytes) -> Callable[[str], Bars]:
    """The candles of *body* by their asset, read the quick way."""
    return Candles(b"{" + body[divide(body)[1] :]).bars


def described(request: QuickRequest | PredictRequest, body: bytes) -> Outcome:
    """Everything that a decision looks at, each number of the candles as text, and times by their order."""
    bars_of = request.bars if isinstance(request, PredictRequest) else bars_in(body)
    first = [bars_of(asset).exact_close(0) for asset in ("BTC", "ETH") if bars_of(asset).times]
    assets = []
    for asset in ("BTC", "ETH", "X"):
        bars = bars_of(asset)
        ranks = sorted(set(bars.times))
        exact = [bars.exact_close(position) for position in range(len(bars.times))]
        assets.append(
            (
                [ranks.index(time) for time in bars.times],
                [repr(value) for value in (*bars.closes, *bars.volumes)],
                [str(close.normalize()) for close in exact],
            )
        )
    money = request.portfolio
    positions = [(held.symbol, held.quantity, held.average_price) for held in money.positions]
    return request.agent_id, money.cash, money.total_value, positions, *first, *assets


def request_id(body: bytes) -> str:
    return read_request(body).request_id


def is_quick(body: bytes) -> bool:
    return isinstance(read_request(body), QuickRequest)


def agree(body: bytes) -> None:
    assert outcome(read_request, body) == outcome(contract.parse_request, body)
    assert outcome(projection, body) == outcome(contract.projection, body)


def text(
    *,
    agent: str = '"agentId":"alice"',
    portfolio: str = '"portfolio":{"cash":1.10,"totalValue":2,"positions":[]}',
    symbol: str = '"symbol":"BTC"',
    time: str = '"timestamp":"2026-02-20T14:00:00+00:00"',
    close: str = '"close":66000.10',
    volume: str = '"volume":0.50',
    more: str = "",
    tail: str = "",
) -> bytes:
    first = f'{{{symbol},{time},"open":1,"high":2.50,"low":0.5,{close},{volume}{more}}}'
    second = (
        '{"symbol":"ETH","timestamp":"2026-02-20T13:00:00Z","open":1,"high":1,"low":1,"close":1,"volume":1}'
    )
    return f'{{{agent},{portfolio},"candles":[{first},{second}]{tail}}}'.encode("utf-8", "surrogatepass")


def candle(age: int, *, symbol: str = '"BTC"', close: str = "1.50", more: str = "") -> str:
    return (
        f'{{"symbol":{symbol},"timestamp":"2026-02-20T14:00:{59 - age:02}Z","open":1,"high":1,"low":1,'
        f'"close":{close},"volume":1{more}}}'
    )


def several(*candles: str, tail: str = "") -> bytes:
    return (
        f'{{"agentId":"alice","portfolio":{{"cash":1,"totalValue":2}},"candles":[{",".join(candles)}]{tail}}}'
    ).encode()


POSITION = '{"symbol":"BTC","quantity":1,"averagePrice":1}'


class TestTheCommonBody:
    """What the client sends is read quickly, or all of this is for nothing."""

    def test_as_the_client_writes_it(self, body: Callable[..., bytes]) -> None:
        assert is_quick(body())
        agree(body())

    def test_with_escaped_text_and_a_position(self, body: Callable[..., bytes]) -> None:
        sent = body(text=r"co\u00FBt \u003E 0 \u002B \uD83D\uDE80 \"x\"").replace(
            b'"positions":[]',
            b'"positions":[{"symbol":"BTC","quantity":0.35000000,"averagePrice":64210.125}]',
        )
        assert is_quick(sent)
        agree(sent)

    def test_without_volumes(self, body: Callable[..., bytes]) -> None:
        sent = body().replace(b'"volume":1000.50000000', b'"volume":0')
        assert is_quick(sent)
        agree(sent)

    @pytest.mark.parametrize("sent", ["", '"requestId":null,', '"instructions":null,'])
    def test_with_members_left_out_or_null(self, sent: str) -> None:
        body = text(agent=sent + '"agentId":"alice"')
        assert is_quick(body)
        assert request_id(body) != request_id(body)  # a fresh one each time

    def test_with_null_instructions_at_the_end(self) -> None:
        assert is_quick(text(tail=',"instructions":null'))

    def test_the_id_it_brings_is_its_own(self) -> None:
        body = text(agent='"requestId":"\\u0041-1","agentId":"alice"')
        assert is_quick(body)
        assert request_id(body) == "A-1"

    def test_in_utf8_that_nobody_escaped(self) -> None:
        sent = text(agent='"agentId":"Zoë"', symbol='"symbol":"Ƀ"', tail=',"instructions":"🚀"')
        assert is_quick(sent)
        agree(sent)

    @pytest.mark.parametrize("instructions", ["[1] {x} ]}", "1]", "}", '\\"candles\\":['])
    def test_with_brackets_in_its_text(self, instructions: str) -> None:
        sent = several(*map(candle, range(4)), tail=f',"instructions":"{instructions}"')
        assert is_quick(sent)
        agree(sent)

    def test_a_close_keeps_every_digit_wherever_it_stands(self) -> None:
        digits = [f"66000.1000000000000000000000000000000{place}" for place in range(6)]
        body = several(*(candle(place, close=close) for place, close in enumerate(digits)))
        assert is_quick(body)
        bars = bars_in(body)("BTC")
        assert [bars.exact_close(place) for place in (0, 5, 1)] == [
            Decimal(digits[place]) for place in (0, 5, 1)
        ]

    def test_money_keeps_every_digit(self) -> None:
        digits = "0.10000000000000000000000000000000001"
        held = f'[{{"symbol":"BTC","quantity":{digits},"averagePrice":1}}]'
        sent = text(portfolio=f'"portfolio":{{"cash":{digits},"totalValue":{digits},"positions":{held}}}')
        assert is_quick(sent)
        money = read_request(sent).portfolio
        assert [money.cash, money.total_value, money.positions[0].quantity] == [Decimal(digits)] * 3


NUMBERS = [
    *("0", "-0", "-0.0", "0e5", "1e22", "1E+5", "1e-7", "9007199254740993", "123456789012345678901234567890"),
    *("2.2250738585072011e-308", "1e-400", "1e400", "-1", "1e-99999999999999999999", "1e99999999999999999999"),
    *("0e-99999999999999999999", "0E99999999999999999999", "0.0e+999999999999999999", "1" * 400, "1" * 5000),
    *("0." + "0" * 5000 + "1", '"64210.125"', '"1e5"', '" 1"', '"1_0"', '"NaN"', "NaN", "Infinity", "-Infinity"),
    *("01", "1.", ".5", "+1", "1e", "0x10", "true", "null", "[]", "{}", '""', "１"),
]  # fmt: skip
TIMES = [
    *("2026-02-20T14:00:00Z", "2026-02-20T14:00:00", "2026-02-20 14:00Z", "2026-02-20T15:00:00+0100"),
    *("2026-02-20T14:00:59.9999999Z", "2026-02-20T14:00:59.999999999+00:00", "2026-02-20T14:00:00.0000001Z"),
    *("2026-02-20t14:00:00z", "2026-02-20T24:00:00Z", "2026-02-20T14:00:60Z", "2026-02-30T00:00:00Z", "now", ""),
    *("2026-02-20T14:00:00Z\\n", "2026-02-20T14:00:00\\u002B00:00", "0001-01-01T00:00:00+05:00", "２026-02-20T14:00Z"),
    *("9999-12-31T23:59:59-05:00", "2026-02-20T14:00:00+25:00", "2026-02-20T14:00:00-00:00", "0000-01-01T00:00Z"),
]  # fmt: skip
ODD = [
    *(text(close=f'"close":{number}') for number in NUMBERS),
    *(text(volume=f'"volume":{number}') for number in NUMBERS),
    *(text(volume=f'"volume":{number}', close='"close":0') for number in NUMBERS),
    *(text(portfolio=f'"portfolio":{{"cash":{number},"totalValue":2}}') for number in NUMBERS),
    *(text(time=f'"timestamp":"{time}"') for time in TIMES),
    text(time='"timestamp":1771596000'),
    text(time='"timestamp":null'),
    *(text(symbol=f'"symbol":{symbol}') for symbol in ('""', '"' + "B" * 33 + '"', '"\\u0042TC"', "null", "1")),
    *(text(agent=f'"agentId":{agent}') for agent in ('""', '"' + "a" * 129 + '"', "null", "7", '"\\ud800"', '"é"')),
    # Names: the other spelling, both, twice, escaped.
    text(agent='"agent_id":"bob"'),
    text(agent='"agentId":"alice","agent_id":"bob"'),
    text(agent='"agent_id":"bob","agentId":"alice"'),
    text(agent='"agentId":"alice","agentId":"bob"'),
    text(agent='"agentId":7,"agentId":"bob"'),
    text(agent='"agentId":"bob","agentId":7'),
    text(agent='"\\u0061gentId":"alice"'),
    text(agent='"AgentId":"alice"'),
    text(close='"close":1,"close":2.50'),
    text(close='"close":"x","close":2.50'),
    *(
        text(volume=f'{volume}:1e-99999999999999999999,"volume":1', tail=tail)
        for volume in ('"volume"', r'"\u0076olume"')
        for tail in ("", f',"candles":[{candle(0)}]', ',"instructions":"v]"')
    ),
    text(volume='"volume":1e-99999999999999999999', tail=f',"candles":[{candle(0)}]'),
    text(volume='"volume":1e-99999999999999999999', symbol='"symbol":"ETH"'),
    text(tail=',"candles":[]'),
    text(tail=',"candles":null'),
    text(tail=',"portfolio":{"cash":3,"totalValue":4}'),
    text(portfolio='"portfolio":{"cash":1,"total_value":2}'),
    text(portfolio='"portfolio":{"cash":1,"totalValue":2,"future":[{"a":"\\u00e9"}]}'),
    text(portfolio='"portfolio":[]'),
    text(portfolio='"portfolio":null'),
    text(portfolio='"portfolio":{"cash":1}'),
    text(portfolio='"portfolio":{"cash":1,"totalValue":2,"x":' + "[" * 198 + "]" * 198 + "}"),
    text(portfolio='"portfolio":{"cash":1,"totalValue":2,"x":' + "[" * 199 + "]" * 199 + "}"),
    text(portfolio='"portfolio":{"cash":1,"totalValue":2,"x":' + "[" * 200 + "]" * 200 + "}"),
    text(portfolio='"portfolio":{"cash":1,"totalValue":2,"x":' + '{"":' * 199 + "1" + "}" * 199 + "}"),
    # A list of candles in another place.
    text(portfolio='"portfolio":{"cash":1,"totalValue":2,"candles":[]}'),
    text(portfolio='"portfolio":{"cash":1,"totalValue":2},"candles":[]'),
    text(portfolio='"portfolio":{"cash":1,"totalValue":2},"candles":[],"instructions":"\\"candles\\":["'),
    text(agent='"candles":[],"agentId":"alice"'),
    text(agent='"agentId":"\\"candles\\":["'),
    text(tail=',"agentId":"bob"'),
    text(tail=',"agent_id":"bob"'),
    text(tail=',"portfolio":{"cash":1,"totalValue":2,"candles":[]}'),
    text().replace(b'"candles":[', b'"candles" : ['),
    # What may look like the end of the candles.
    *(
        several(*map(candle, range(count)), tail=tail)
        for count in (0, 1, 2, 3)
        for tail in (
            f',"portfolio":{{"cash":1,"totalValue":2,"positions":[{",".join([POSITION] * 3)}]}}',
            ',"agentId":"[}}","portfolio":{"cash":3,"totalValue":2},"instructions":"]"',
            ',"portfolio":{"cash":3,"totalValue":2},"instructions":"]"',
            ',"instructions":"\\"candles\\":["',
            f',"candles":[{",".join(candle(age, close="2.50") for age in range(4))}]',
        )
    ),
    *(
        several(candle(0, symbol=first), candle(1, symbol=second), candle(2))
        for first in ('"BTC"', '"}"', '"]"', '"["')
        for second in ('"ETH"', '"}"', '"]"', '"["')
    ),
    *(
        text(portfolio=f'"portfolio":{{"cash":1,"totalValue":2,"positions":[{position}]}}')
        for position in (
            POSITION.replace("BTC", ""), POSITION.replace("BTC", "B" * 33), POSITION.replace(":1", ":null"),
            POSITION.replace("}", r',"x":"\ud800"}'), POSITION.replace("}", ',"x":1}'), POSITION + ",{}",
            POSITION.replace(":1", ":1e29"), POSITION.replace("averageP", "average_p"),
        )
    ),
    # A member that comes again, and would be refused if it did not.
    *(
        text(portfolio=f'"portfolio":{bad},"portfolio":{{"cash":1,"totalValue":2}}')
        for bad in (
            '{"cash":1e99999999999999999999}', "[" * 250 + "]" * 250, "1e-99999999999999999999", "7" * 5000, "null",
            '{"cash":1,"totalValue":2}', '{"cash":"\\ud800","totalValue":2}', '{"cash":"1","totalValue":2}',
        )
    ),
    # Members of another version.
    text(more=',"trades":7'),
    text(tail=',"future":{"a":[1]}'),
    text(tail=',"future":"é"'),
    text(tail=',"request_id":"r"'),
    *(text(tail=f',"requestId":{value}') for value in ('""', "7", '"' + "r" * 128 + '"', '"' + "r" * 129 + '"')),
    *(text(tail=f',"schemaVersion":{value}') for value in ('"1.0"', '"1"', '"1.0\\n"', '"2.0"', "1.0", "null")),
    *(text(tail=f',"instructions":{value}') for value in ('""', "7", '"\\ud83d\\ude80"', '"\\ude80"', '"\\x"')),
    # Not UTF-8, in what is read and in what is skipped.
    *(
        body.replace(b"?", bad)
        for bad in (b"\xff", b"\xe9", b"\xc0\x80", b"\xed\xa0\x80", b"\xf0\x9f\x9a", "é".encode())
        for body in (
            text(agent='"agentId":"?"'), text(symbol='"symbol":"?"'), text(tail=',"instructions":"?"'),
            text(time='"timestamp":"2026-02-20T14:00:00Z?"'), text(more=',"?":1'), text(tail=',"?":1'),
            text(tail=',"requestId":"?","requestId":"r"'),
            text(portfolio=f'"portfolio":{{"cash":1,"totalValue":2,"positions":[{POSITION[:-1]},"x":"?"}}]}}'),
            text(portfolio='"portfolio":{"cash":"?"},"portfolio":{"cash":1,"totalValue":2}'),
        )
    ),
    *(text(agent=f'"agentId":"{"é" * length}"') for length in (128, 129)),
    *(text(symbol=f'"symbol":"{"é" * length}"') for length in (32, 33)),
    # Not JSON, or not quite.
    b"", b"{", b"[]", b"null", b"{}", b"\xef\xbb\xbf" + text(), text() + b"x", b" \n\t\r" + text() + b" \n",
    text()[:-1], text().replace(b"}]", b"},]"), text().replace(b"alice", b"al\xff"), text().replace(b"alice", b"a\nb"),
    text().replace(b'"positions":[]', b'"positions":"\xff"'), text().decode().encode("utf-16"), b"\x00" + text(),
]  # fmt: skip


@pytest.mark.parametrize("body", ODD, ids=range(len(ODD)))
def test_both_readings_agree_on_odd_bodies(body: bytes) -> None:
    agree(body)


@given(
    data=st.data(),
    numbers=st.lists(st.decimals(allow_nan=False, allow_infinity=False), min_size=4, max_size=4),
    spelling=st.sampled_from(["{}", "{:f}", "{:E}", '"{}"', '"{:f}"']),
    times=st.lists(st.datetimes(timezones=st.none() | st.timezones()), min_size=1, max_size=6),
    zone=st.sampled_from(["", "Z", "+00:00", "+0530"]),
    agent=st.text(max_size=6),
    ascii_only=st.booleans(),
)
def test_both_readings_agree_on_generated_bodies(
    data: st.DataObject,
    numbers: list[Decimal],
    spelling: str,
    times: list[Any],
    zone: str,
    agent: str,
    ascii_only: bool,
) -> None:
    cash, total, close, volume = (spelling.format(number) for number in numbers)
    candles = []
    for time in times:
        symbol = data.draw(st.sampled_from(["BTC", "ETH", "X"]))
        stamp = time.isoformat() if time.tzinfo is not None else time.isoformat() + zone
        candles.append(
            f'{{"symbol":"{symbol}","timestamp":"{stamp}","open":{close},"high":1,"low":1,"close":{close},'
            f'"volume":{volume}}}'
        )
    name = json.dumps(agent, ensure_ascii=ascii_only)
    body = f'{{"agentId":{name},"portfolio":{{"cash":{cash},"totalValue":{total}}},"candles":[{",".join(candles)}]}}'
    agree(body.encode("utf-8", "surrogatepass"))


# What a text may hold that looks like the structure around it; as it would be written in JSON.
STRUCTURE = st.lists(
    st.sampled_from(
        [
            *"[]{},:1",
            r"\"",
            r"\\",
            r"\"candles\":[",
            r"\u0022",
            "candles",
            '}],"instructions":"',
            "BTC",
        ]
    ),
    max_size=4,
).map("".join)
CLOSES = st.sampled_from(["1.5", "1.50000000000000000000000001", "1.50000000000000000000000002"])


@given(data=st.data(), compact=st.booleans())
def test_both_readings_agree_where_texts_look_like_structure_and_members_come_twice(
    data: st.DataObject, compact: bool
) -> None:
    comma = "," if compact else " ,  "

    def candles() -> str:
        symbols = st.sampled_from(["BTC", "ETH"]) | STRUCTURE
        ages = range(data.draw(st.integers(0, 5)))
        own = [candle(age, symbol=f'"{data.draw(symbols)}"', close=data.draw(CLOSES)) for age in ages]
        return f"[{comma.join(own)}]"

    def portfolio() -> str:
        held = POSITION.replace("BTC", data.draw(STRUCTURE) or "B")
        positions = data.draw(st.sampled_from(["", ',"positions":[]', f',"positions":[{held}]']))
        return f'{{"cash":{data.draw(CLOSES)},"totalValue":2{positions}}}'

    members = [
        f'"agentId":"{data.draw(STRUCTURE) or "a"}"',
        *(f'"portfolio":{portfolio()}' for _ in range(data.draw(st.integers(1, 2)))),
        *(f'"candles":{candles()}' for _ in range(data.draw(st.integers(1, 2)))),
        *data.draw(st.sampled_from([[], [f'"\\u0063andles":{candles()}']])),
        f'"instructions":"{data.draw(STRUCTURE)}"',
    ]
    if data.draw(st.booleans()):
        members = data.draw(st.permutations(members))
    body = f"{{{comma.join(members)}}}"
    agree((body if compact else body.replace(":[", ": [")).encode())


@given(
    cut=st.integers(0, 400),
    removed=st.integers(0, 3),
    put=st.sampled_from(
        [
            b"",
            *(bytes([byte]) for byte in b'"\\{}[]:,0-.eE \n\x00\x7f\xff\xe9'),
            b"null",
            b"1e999",
            b"\\u0030",
            b'"a":',
        ]
    ),
)
@example(cut=0, removed=0, put=b"")
def test_both_readings_agree_on_damaged_bodies(cut: int, removed: int, put: bytes) -> None:
    whole = text()
    agree(whole[:cut] + put + whole[cut + removed :])
