"""
Writes the lines that every request logs without a `logging.LogRecord`, which costs twice what the line does.

This is done only if nothing but the service's own handler would see the record. Otherwise the line goes through
`logging`, and with `ML_API_IMPL=plain` always. Both ways write the same text.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TextIO

__all__ = ["log_info", "write_lines_to"]


class _Output(NamedTuple):
    handler: logging.StreamHandler[TextIO]
    render: Callable[[float, str, str, str, Mapping[str, object]], str]


_outputs: list[_Output] = []  # one, or none


def write_lines_to(
    handler: logging.StreamHandler[Any] | None,
    render: Callable[[float, str, str, str, Mapping[str, object]], str],
) -> None:
    """
    Let `log_info` write to the stream of *handler*; None makes it use `logging`.

    Args:
        render: Returns the line that *handler* would write, from time, level, name of the logger, message and fields.
    """
    _outputs[:] = [_Output(handler, render)] if handler is not None else []


def log_info(logger: logging.Logger, message: str, fields: Mapping[str, object]) -> None:
    """Do what `logger.info(message, extra=fields)` does; *message* has no arguments."""
    if not logger.isEnabledFor(logging.INFO):
        return
    for output in _outputs:
        if not _is_only_handler(output.handler, logger):
            continue
        try:
            line = output.render(time.time(), "INFO", logger.name, message, fields) + "\n"
            output.handler.acquire()
            try:
                output.handler.stream.write(line)
                output.handler.flush()
            finally:
                output.handler.release()
        except Exception:  # noqa: S110 - logging says what is wrong with the stream
            pass
        else:
            return
    logger.info(message, extra=fields)


def _is_only_handler(handler: logging.Handler, logger: logging.Logger) -> bool:
    """Whether nothing but *handler* sees what *logger* logs, or adds to it."""
    one = logger
    while one.parent is not None:
        if one.handlers or one.filters or not one.propagate:
            return False
        one = one.parent
    return (
        one.handlers == [handler]
        and handler.level <= logging.INFO
        and not handler.filters
        and logging.getLogRecordFactory() is logging.LogRecord
    )
