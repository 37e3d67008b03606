"""What a list of candles says by itself; that it is what the contract reads is `test_quick`'s to show."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from ml_api.predict import candles
from ml_api.predict.candles import Candles


def candle(time: str) -> str:
    return f'{{"symbol":"BTC","timestamp":"{time}","open":1,"high":1,"low":1,"close":1,"volume":1}}'


def test_the_newest_minute_is_that_of_the_latest_instant_whatever_its_zone() -> None:
    times = ["2026-02-20T14:00:59.999Z", "2026-02-20T13:59:00", "2026-02-20T17:01:00+03:00"]
    text = b'{"candles":[%b]}' % ",".join(candle(time) for time in times).encode()
    assert Candles(text).newest_minute == 29_526_601
    assert Candles(b'{"candles":[]}').newest_minute is None


def test_of_the_timestamps_there_ever_were_few_thousands_are_kept() -> None:
    start = datetime(2026, 2, 20, tzinfo=UTC)
    times = [(start + timedelta(minutes=minute)).isoformat() for minute in range(10_000)]
    text = b'{"candles":[%b]}' % ",".join(candle(time) for time in times).encode()
    assert Candles(text).newest_minute == 29_525_760 + 9_999
    assert len(candles._moments) <= 4096
