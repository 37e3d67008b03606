"""
Tells whether a framework refused the request's input while it parsed or validated it.

In Flask and Django REST framework the handler itself starts the parsing and validation, after the claim. Such a refusal
is not an outcome. Only the traceback counts as evidence.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Literal, TypeAlias

__all__ = ["Asked", "NotAccepted", "refused_input"]

Asked: TypeAlias = Mapping[str, Collection[str]]
"""By module, the functions of a framework that read and check what the client sent."""

NotAccepted: TypeAlias = Literal["before", "inside"]
"""
"before": before any code of the application ran; "inside": in a handler, which usually validates first.
"""

_OURS: Final = "idempotency"


def refused_input(
    error: BaseException, *, asked: Asked, only_before: Asked, frameworks: Collection[str]
) -> NotAccepted | None:
    """
    Whether *error* was raised by a framework that refused the request's input, and whether a handler had begun.

    Args:
        asked: The functions that read the input; they count wherever they are called.
        only_before: Functions that count only if no code of the application is among their callers.
        frameworks: The packages whose code is not the application's.
    """
    trace, own = error.__traceback__, False
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        name = trace.tb_frame.f_code.co_name
        if name in asked.get(module, ()):
            return "inside" if own else "before"
        if not own and name in only_before.get(module, ()):
            return "before"
        own = own or module.partition(".")[0] not in (*frameworks, _OURS)
        trace = trace.tb_next
    return None
