"""
Tells whether a framework refused the request's input while a handler, or the framework for it, asked for that.

In Flask and Django REST framework the handler itself has the body parsed and validated, after the claim. Such a refusal
is no outcome. Only a traceback counts as evidence.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Literal, TypeAlias

__all__ = ["Asked", "NotAccepted", "refused_input"]

Asked: TypeAlias = Mapping[str, Collection[str]]
"""The functions of a framework that read and check what the client sent, by module."""

NotAccepted: TypeAlias = Literal["before", "inside"]
"""
Before any code of the application, so that nothing has happened; or inside a handler, which validates first as a rule.
"""

_OURS: Final = "idempotency"


def refused_input(
    error: BaseException, *, asked: Asked, only_before: Asked, frameworks: Collection[str]
) -> NotAccepted | None:
    """
    Whether *error* was raised by a framework that refused the request's input, and whether a handler had begun.

    Args:
        asked: What reads the input, whoever calls it.
        only_before: What refuses a request if the application has not called it.
        frameworks: Packages whose code is not the application's.
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
