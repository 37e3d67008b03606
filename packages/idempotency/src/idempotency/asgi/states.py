"""
Defines the states of a response while it is recorded and sent, and the transitions between them.

`scripts/state_diagrams` draws `docs/recorder-states.md` from this table. The tests of the middleware fail if the
recorder makes a transition that is not in the table, or if no test makes one that is.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

__all__ = ["TRANSITIONS", "State", "Transition"]


class State(Enum):
    """The state of a claimed run's response."""

    BUFFERING = "What the application sends is held back."
    WHOLE = "The answer is complete, and held back until the application returns."
    RECORDING = "The store is asked to record the answer, or to free the key."
    FAILED = "The application ended without a complete answer. The key is freed, or the failure recorded."
    FORWARDING = "What the application sends is passed on at once."
    DISCARDING = "Another answer was sent instead. What the application sends is dropped."


class Transition(NamedTuple):
    """A transition, the recorder's method that makes it, and when."""

    before: State
    after: State
    method: str
    when: str


TRANSITIONS: Final = (
    Transition(State.BUFFERING, State.WHOLE, "_hold_until_return", 'complete, under Policy(record="return")'),
    Transition(State.BUFFERING, State.RECORDING, "_take_run", "complete, or it cannot be kept (E2)"),
    Transition(
        State.BUFFERING, State.FAILED, "_take_failed_run", "the application raised, or returned early"
    ),
    Transition(State.WHOLE, State.RECORDING, "_take_run", "the application returned"),
    Transition(State.WHOLE, State.FAILED, "_take_failed_run", "the application raised"),
    Transition(State.RECORDING, State.FORWARDING, "_flush", "this run's answer is sent"),
    Transition(State.RECORDING, State.DISCARDING, "_send_successor", "the claim was lost (E8)"),
    Transition(State.FAILED, State.FORWARDING, "_flush", "an answer had begun, and is sent incomplete"),
)
"""Every transition of an answer. It begins in `State.BUFFERING`."""
