"""
Logs: one line per event, as JSON for machines or plain text for people, with the id of its request.

The further fields of a line come from `extra`. Every call passes only digests and counts, never a key, a header or a
body.
"""

from __future__ import annotations

import json
import logging
import logging.config
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from typing import Literal

import msgspec

from ml_api.observability.quick_lines import write_lines_to
from ml_api.settings import plain_implementation

__all__ = ["configure_logging", "request_id", "trace_id"]

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the current request: the caller's X-Request-ID, or a generated one."""

trace_id: ContextVar[str] = ContextVar("trace_id", default="")
"""The trace id of the current request (W3C Trace Context, 3.2.2.3), if the caller sent one."""

_BY_RECORD = len(vars(logging.makeLogRecord({})))
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


def configure_logging(level: str, style: Literal["auto", "json", "console"]) -> None:
    """
    Write the records of all loggers to stderr, in one format.

    Args:
        style: "auto" means console on a terminal, and JSON otherwise.
    """
    # These facts are not logged, and collecting them is a large part of the cost of a line. Python's documentation of
    # logging, section "Optimization", names all of these switches.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001 - a documented switch
    if sys.version_info >= (3, 12):
        logging.logAsyncioTasks = False
    plain = style == "console" or (style == "auto" and sys.stderr.isatty())
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"form": {"()": _ConsoleFormatter if plain else _JsonFormatter}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "form"}},
            "root": {"handlers": ["stderr"], "level": level},
            "loggers": {
                # uvicorn's records go to the same handler. Its access log is off: `ml_api.request` logs more.
                "uvicorn": {"handlers": [], "propagate": True, "level": "NOTSET"},
                "uvicorn.access": {"handlers": [], "propagate": False, "level": "CRITICAL"},
            },
        }
    )
    quick = not (plain or plain_implementation())
    write_lines_to(logging.getLogger().handlers[0] if quick else None, _json_line)  # type: ignore[arg-type]


_encode = msgspec.json.Encoder(enc_hook=str).encode
_encode_anything = json.JSONEncoder(default=str, skipkeys=True).encode


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = _extras(record)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return _json_line(record.created, record.levelname, record.name, record.getMessage(), fields)


def _json_line(created: float, level: str, logger: str, message: str, fields: Mapping[str, object]) -> str:
    line = {
        "time": _instant(created),
        "level": level,
        "logger": logger,
        "message": message,
        **_context(),
        **fields,
    }
    try:
        return _encode(line).decode()
    except (ValueError, TypeError):
        # A text with surrogates, or a number of more than 64 bits: the line must be written anyway.
        return _encode_anything(line)


class _ConsoleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in (_context() | _extras(record)).items())
        line = _visible(f"{_instant(record.created)} {record.levelname:<7} {record.getMessage()}{fields}")
        if not record.exc_info:
            return line
        # Indented, so that a line of an error's text cannot look like another record.
        first, *others = self.formatException(record.exc_info).splitlines()
        return "\n".join([line, _visible(first), *(f"  {_visible(text)}" for text in others)])


def _visible(text: str) -> str:
    """Return *text* with control characters escaped, so that it cannot begin a new line or control a terminal."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def _instant(created: float) -> str:
    second, millisecond = divmod(int(created * 1000), 1000)
    return f"{_second(second)}.{millisecond:03}Z"


@lru_cache(maxsize=8)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).replace(tzinfo=None).isoformat()


def _context() -> dict[str, object]:
    request, trace = request_id.get(), trace_id.get()
    context: dict[str, object] = {"request_id": request} if request else {}
    return context | {"trace_id": trace} if trace else context


def _extras(record: logging.LogRecord) -> dict[str, object]:
    # The members after those of every record; without the texts that other formatters may have added.
    added = islice(vars(record).items(), _BY_RECORD, None)
    return {name: value for name, value in added if name not in _STANDARD}
