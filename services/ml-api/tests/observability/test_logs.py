"""Log lines: valid JSON or one plain line whatever they contain, each written immediately."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Literal

import pytest

from ml_api.observability.logs import configure_logging, request_id, trace_id

Line = Callable[..., dict[str, object]]


@pytest.fixture
def line(capsys: pytest.CaptureFixture[str]) -> Line:
    """Log one message as JSON and return the parsed line."""
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


def test_a_json_line_has_time_level_logger_request_id_and_fields(
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


def test_each_line_has_its_own_time(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for moment in (1_771_596_000.999, 1_771_596_001.0):
        monkeypatch.setattr("time.time", lambda moment=moment: moment)
        monkeypatch.setattr("time.time_ns", lambda moment=moment: round(moment * 1e9))
        seen.append(line("x")["time"])
    assert seen == ["2026-02-20T14:00:00.999Z", "2026-02-20T14:00:01.000Z"]


@pytest.mark.parametrize(
    "odd", ["a lone \ud800 surrogate", 2**70, float("nan"), ValueError("no JSON type"), {(1, 2): 3}]
)
def test_a_value_that_json_cannot_encode_does_not_lose_the_line(line: Line, odd: object) -> None:
    assert line("ERROR in something", odd=odd)["message"] == "ERROR in something"


def test_non_ascii_text_and_line_feeds_stay_in_one_json_line(line: Line) -> None:
    assert line("coût\nERROR forged")["message"] == "coût\nERROR forged"


class Pipe:
    """A stream that records each write; a terminal if `terminal` is set."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.terminal = False

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> None:
        self.written.append(text)

    def flush(self) -> None:
        pass


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    """The stream to which the service logs during the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(sys, "stderr", pipe := Pipe())
    configure_logging("INFO", "json")
    yield pipe
    root.handlers[:], root.level = handlers, level


log = logging.getLogger("ml_api.test")


@pytest.mark.parametrize(
    ("style", "terminal", "plain"),
    [
        ("json", True, False),
        ("json", False, False),
        ("console", True, True),
        ("console", False, True),
        ("auto", True, True),
        ("auto", False, False),
    ],
)
def test_auto_format_is_plain_on_a_terminal_and_json_elsewhere(
    pipe: Pipe,
    monkeypatch: pytest.MonkeyPatch,
    style: Literal["auto", "json", "console"],
    terminal: bool,
    plain: bool,
) -> None:
    pipe.terminal = terminal
    monkeypatch.setattr(sys, "stderr", pipe)
    configure_logging("INFO", style)
    log.info("said")
    assert pipe.written[0].startswith("{") is not plain


def test_a_plain_line_has_time_level_message_and_fields_and_then_the_traceback(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", pipe)
    configure_logging("INFO", "console")
    tokens = request_id.set("r-1"), trace_id.set("t-1")
    try:
        log.info("Cache HIT", extra={"key_id": "ab"})
    finally:
        request_id.reset(tokens[0])
        trace_id.reset(tokens[1])
    try:
        raise RuntimeError("why")
    except RuntimeError:
        log.exception("ERROR in it")
    hit, fault = pipe.written
    moment = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert re.fullmatch(rf"{moment} INFO    Cache HIT request_id=r-1 trace_id=t-1 key_id=ab\n", hit)
    assert re.match(rf"{moment} ERROR   ERROR in it\nTraceback ", fault)
    assert fault.endswith("RuntimeError: why\n")


def test_a_json_line_has_the_trace_id_and_the_exception(pipe: Pipe) -> None:
    token = trace_id.set("t-1")
    try:
        raise RuntimeError("why")
    except RuntimeError:
        log.exception("ERROR in it")
    finally:
        trace_id.reset(token)
    (text,) = pipe.written
    assert json.loads(text)["trace_id"] == "t-1"
    assert json.loads(text)["exception"].endswith("RuntimeError: why")


def test_a_lone_surrogate_loses_no_plain_line(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", pipe)
    configure_logging("INFO", "console")
    log.info("half \ud800")
    log.info("next")
    assert [text.count("\n") for text in pipe.written] == [1, 1]


def test_a_log_call_with_wrong_arguments_does_not_raise(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log.info("%d", "no number")
    log.info("next")
    assert [json.loads(text)["message"] for text in pipe.written] == ["next"]


def test_attributes_added_by_another_formatter_are_not_logged(pipe: Pipe) -> None:
    record = logging.makeLogRecord({"msg": "x", "levelno": logging.INFO, "key_id": "ab"})
    logging.Formatter("%(asctime)s %(message)s").format(record)
    logging.getLogger().handle(record)
    assert set(json.loads(pipe.written[0])) == {"time", "level", "logger", "message", "key_id"}


def test_each_line_is_written_immediately_by_one_write(
    pipe: Pipe,
) -> None:
    log.info("one")
    log.info("a long one, " + "\N{GREEK SMALL LETTER ALPHA}" * 1000)
    assert len(pipe.written) == 2
    assert all(text.endswith("\n") and text.count("\n") == 1 for text in pipe.written)


@pytest.mark.parametrize("sign", ["\n", "\r", "\x1b[2J", "\x85", "\u2028", "\u202e"])
def test_control_characters_cannot_forge_a_plain_line(sign: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logging("INFO", "console")
    try:
        logging.getLogger("ml_api.test").info(
            "a%sERROR forged", sign, extra={"path": f"/x{sign}ERROR forged"}
        )
        try:
            raise RuntimeError(f"why{sign}2026-01-01T00:00:00.000Z ERROR   forged")
        except RuntimeError:
            logging.getLogger("ml_api.test").exception("failed")
    finally:
        root.handlers[:], root.level = handlers, level
    written = capsys.readouterr().err
    assert sign == "\n" or sign not in written
    lines = written.split("\n")
    assert all(line.isprintable() for line in lines)
    assert [line for line in lines if line.startswith("20")] == [lines[0], lines[1]]
