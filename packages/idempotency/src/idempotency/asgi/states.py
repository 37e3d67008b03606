"""
The states of an answer on its way out, and what leads from one to the next.

`scripts/state_diagrams` draws `docs/recorder-states.md` from this table. The tests of the middleware fail where the
recorder takes a step that is not in it, and where no test takes one that is.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

__all__ = ["TRANSITIONS", "State", "Transition"]


class State(Enum):
    """Where the answer of a claimed run stands."""

    BUFFERING = "What the application sends is kept back."
    WHOLE = "The answer is whole, and kept back until the application returns."
    RECORDING = "The store is asked to record the answer, or to free the key."
    FAILED = "The application ended without a whole answer. The key is freed, or the failure recorded."
    FORWARDING = "What the application sends goes straight out."
    DISCARDING = "Another answer went out in its place. What the application sends is dropped."


class Transition(NamedTuple):
    """A step, and the method of the recorder that takes it."""

    before: State
    after: State
    method: str
    when: str


TRANSITIONS: Final = (
    Transition(State.BUFFERING, State.WHOLE, "_hold_until_return", 'whole, under Policy(record="return")'),
    Transition(State.BUFFERING, State.RECORDING, "_take_run", "whole, or it cannot be kept (E2)"),
    Transition(
        State.BUFFERING, State.FAILED, "_take_failed_run", "the application raised, or returned early"
    ),
    Transition(State.WHOLE, State.RECORDING, "_take_run", "the application returned"),
    Transition(State.WHOLE, State.FAILED, "_take_failed_run", "the application raised"),
    Transition(State.RECORDING, State.FORWARDING, "_flush", "our own answer goes out"),
    Transition(State.RECORDING, State.DISCARDING, "_send_successor", "the claim was lost (E8)"),
    Transition(State.FAILED, State.FORWARDING, "_flush", "an answer had begun, and goes out broken"),
)
"""Every step that an answer may take. It begins in `State.BUFFERING`."""
