"""Quick lines equal those of `logging`, and other handlers of a logger still get records."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator

import pytest

from ml_api.observability import logs
from ml_api.observability.logs import configure_logging, request_id, trace_id
from ml_api.observability.quick_lines import log_info

log = logging.getLogger("ml_api.test")


class Listener(logging.Handler):
    """A handler that keeps its records."""

    def __init__(self, seen: list[logging.LogRecord]) -> None:
        super().__init__()
        self.seen = seen

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record)


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restores the handlers and the level of the root logger."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.delenv("ML_API_IMPL", raising=False)
    yield
    root.handlers[:], root.level = handlers, level


Start = Callable[..., io.StringIO]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    """Configures JSON logging to a stream; called in the test, because pytest adds its handlers before it."""

    def started(level: str = "INFO") -> io.StringIO:
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        # In the middle of a millisecond: a record of Python 3.13 divides the nanoseconds, which rounds.
        monkeypatch.setattr("time.time", lambda: 1_771_596_000.2505)
        monkeypatch.setattr("time.time_ns", lambda: 1_771_596_000_250_500_000)
        configure_logging(level, "json")
        return stream

    return started


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[logging.LogRecord]:
    """The records that the formatter of the service has received."""
    seen: list[logging.LogRecord] = []
    plain = logs._JsonFormatter.format

    def note(formatter: logs._JsonFormatter, record: logging.LogRecord) -> str:
        seen.append(record)
        return plain(formatter, record)

    monkeypatch.setattr(logs._JsonFormatter, "format", note)
    return seen


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"key_id": "ab", "attempt": 1},
        {"odd": "a lone \ud800 surrogate"},
        {"run_ms": 0.25, "odd": {(1, 2): 3}},
    ],
    ids=["none", "some", "surrogate", "no JSON type"],
)
@pytest.mark.parametrize("context", [("", ""), ("r-1", ""), ("r-1", "t-1")])
def test_a_quick_line_equals_the_line_of_a_log_record(
    start: Start,
    records: list[logging.LogRecord],
    fields: dict[str, object],
    context: tuple[str, str],
) -> None:
    stream = start()
    tokens = request_id.set(context[0]), trace_id.set(context[1])
    try:
        log_info(log, "Cache MISS", fields)
        assert records == []
        log.info("Cache MISS", extra=fields)
    finally:
        request_id.reset(tokens[0])
        trace_id.reset(tokens[1])

    quick, plain = stream.getvalue().splitlines()
    assert quick == plain
    assert len(records) == 1


def test_a_level_above_info_writes_no_quick_line(start: Start) -> None:
    stream = start("WARNING")
    log_info(log, "Cache MISS", {})
    assert stream.getvalue() == ""


def test_the_plain_implementation_makes_records(
    start: Start, records: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ML_API_IMPL", "plain")
    stream = start()
    log_info(log, "Cache MISS", {})
    assert len(records) == len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize("name", ["", "ml_api", "ml_api.test"])
def test_another_handler_gets_a_record(start: Start, name: str) -> None:
    stream = start()
    seen: list[logging.LogRecord] = []
    other = Listener(seen)
    logging.getLogger(name).addHandler(other)
    try:
        log_info(log, "Cache MISS", {"key_id": "ab"})
    finally:
        logging.getLogger(name).removeHandler(other)
    assert [vars(record)["key_id"] for record in seen] == ["ab"]
    assert len(stream.getvalue().splitlines()) == 1


def test_logger_filters_and_record_factories_are_respected(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = start()

    def refuse(_: logging.LogRecord) -> bool:
        return False

    log.addFilter(refuse)
    try:
        log_info(log, "Cache MISS", {})
    finally:
        log.removeFilter(refuse)
    assert stream.getvalue() == ""

    class Marked(logging.LogRecord):
        pass

    monkeypatch.setattr(logging, "_logRecordFactory", Marked)
    made: list[type] = []
    monkeypatch.setattr(logging.StreamHandler, "emit", lambda _, record: made.append(type(record)))
    log_info(log, "Cache MISS", {})
    assert made == [Marked]


def test_a_logger_that_does_not_propagate_writes_no_line(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = start()
    monkeypatch.setattr(log, "propagate", False)
    monkeypatch.setattr(logging, "lastResort", None)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log_info(log, "Cache MISS", {})
    assert stream.getvalue() == ""


def test_handler_filters_and_levels_are_respected(start: Start) -> None:
    stream = start()
    handler = logging.getLogger().handlers[0]
    handler.addFilter(lambda _: False)
    log_info(log, "Cache MISS", {})
    handler.filters.clear()
    handler.setLevel(logging.WARNING)
    log_info(log, "Cache MISS", {})
    assert stream.getvalue() == ""


def test_a_closed_stream_does_not_raise_in_the_caller(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = start()
    monkeypatch.setattr(logging, "raiseExceptions", False)
    stream.close()
    log_info(log, "Cache MISS", {})
    assert stream.closed
