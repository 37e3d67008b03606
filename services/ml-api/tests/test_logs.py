"""Log lines: JSON a machine can read, whatever is said in them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from ml_api.logs import configure_logging, request_id

Line = Callable[..., dict[str, object]]


@pytest.fixture
def line(capsys: pytest.CaptureFixture[str]) -> Line:
    """Log once in JSON, and read the line back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def of(message: str, **extra: object) -> dict[str, object]:
        configure_logging("INFO", "json")
        try:
            logging.getLogger("ml_api.test").info(message, extra=extra)
        finally:
            root.handlers[:], root.level = handlers, level
        (written,) = capsys.readouterr().err.splitlines()
        read: dict[str, object] = json.loads(written)
        return read

    return of


def test_a_line_has_its_moment_its_request_and_its_fields(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = datetime(2026, 2, 20, 14, 0, 59, 7_000, tzinfo=UTC).timestamp()
    monkeypatch.setattr("time.time", lambda: moment)
    monkeypatch.setattr("time.time_ns", lambda: round(moment * 1e9))
    token = request_id.set("r-1")
    try:
        assert line("Cache HIT", key_id="ab", age_s=0.25) == {
            "time": "2026-02-20T14:00:59.007Z",
            "level": "INFO",
            "logger": "ml_api.test",
            "message": "Cache HIT",
            "request_id": "r-1",
            "key_id": "ab",
            "age_s": 0.25,
        }
    finally:
        request_id.reset(token)


def test_two_lines_a_second_apart_differ_in_time(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for moment in (1_771_596_000.999, 1_771_596_001.0):
        monkeypatch.setattr("time.time", lambda moment=moment: moment)
        monkeypatch.setattr("time.time_ns", lambda moment=moment: round(moment * 1e9))
        seen.append(line("x")["time"])
    assert seen == ["2026-02-20T14:00:00.999Z", "2026-02-20T14:00:01.000Z"]


@pytest.mark.parametrize("odd", ["a lone \ud800 surrogate", 2**70, float("nan"), ValueError("no JSON type")])
def test_no_value_costs_the_line(line: Line, odd: object) -> None:
    assert line("ERROR in something", odd=odd)["message"] == "ERROR in something"


def test_text_beyond_ascii_and_line_feeds_stay_in_their_line(line: Line) -> None:
    assert line("coût\nERROR forged")["message"] == "coût\nERROR forged"
