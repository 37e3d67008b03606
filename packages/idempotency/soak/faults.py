"""
Named steps of a request, and the process that kills or freezes itself at one of them.

The library is not changed for this: the steps lie in a store around the store, in the handler and in what sends the
answer (`application`).
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from journal import Journal

__all__ = ["RENEWAL", "Board", "Fate", "steps_of"]

RENEWAL = "before a renewal"


def steps_of(mode: str) -> tuple[str, ...]:
    """The steps at which a worker may die; in T the record is made by the effect's own transaction."""
    transaction = ("before the commit", "in the commit", "after the commit") if mode == "T" else ()
    return (
        "before the claim",
        "in the claim",
        "after the claim",
        "before the effect",
        "after the effect",
        *transaction,
        RENEWAL,
        "before the record",
        "in the record",
        "after the record",
        "before the reply",
        "in the reply",
    )


class Board:
    """
    Numbers in memory that every forked process sees: kills and freezes by step, plans made, whether all is calm.

    Nothing locks them. Two processes that count in the same instant count once, which errs on the strict side: a run
    asks for kills at every step.
    """

    def __init__(self, steps: Sequence[str]) -> None:
        self.steps = tuple(steps)
        self._numbers = memoryview(mmap.mmap(-1, struct.calcsize("Q") * (2 + 2 * len(steps)))).cast("Q")

    @property
    def calm(self) -> bool:
        """Whether nobody is to be killed or frozen any more."""
        return bool(self._numbers[0])

    def calm_down(self) -> None:
        """Let everybody live from now on."""
        self._numbers[0] = 1

    def next_plan(self) -> int:
        """How many plans were made before this one."""
        self._numbers[1] += 1
        return self._numbers[1] - 1

    def count(self, step: str, *, killed: bool) -> None:
        """One more death, or freeze, at *step*."""
        self._numbers[2 + 2 * self.steps.index(step) + (not killed)] += 1

    @property
    def kills(self) -> dict[str, int]:
        """Deaths by step."""
        return dict(zip(self.steps, self._numbers[2::2], strict=True))

    @property
    def freezes(self) -> dict[str, int]:
        """Freezes by step."""
        return dict(zip(self.steps, self._numbers[3::2], strict=True))


class Fate:
    """
    What befalls this process: at one step, at the n-th time that it comes by, it kills itself or freezes.

    The processes take the steps in turn, so that in a short run too each has its share; every fourth round freezes.

    Args:
        every: How often, on average, a process passes its step before it is struck.
        freezes: Whether there are freezes at all.
    """

    def __init__(
        self, board: Board, journal: Journal, chance: random.Random, *, every: int, freezes: bool
    ) -> None:
        self._board = board
        self._journal = journal
        self._chance = chance
        self._every = every
        self._freezes = freezes
        self._plan()

    def _plan(self) -> None:
        rounds, turn = divmod(self._board.next_plan(), len(self._board.steps))
        self._step = self._board.steps[turn]
        self._kills = not self._freezes or rounds % 4 != 3
        # Few requests run long enough to be renewed.
        self._left = 1 if self._step == RENEWAL else self._chance.randint(1, 2 * self._every - 1)

    def at(self, step: str) -> None:
        """Pass *step*, or not."""
        if self._is_due(step):
            os.kill(os.getpid(), self._strike())
            self._plan()  # thawed

    @contextmanager
    def during(self, step: str) -> Iterator[None]:
        """Pass *step*, or be struck at some moment of its first millisecond; certainly before its end is seen."""
        if not self._is_due(step):
            yield
            return
        signal_number, delay = self._strike(), self._chance.uniform(0.0, 0.001)

        def strike() -> None:
            time.sleep(delay)
            os.kill(os.getpid(), signal_number)

        thread = threading.Thread(target=strike)
        thread.start()
        try:
            yield
        finally:
            thread.join()
            self._plan()

    def _is_due(self, step: str) -> bool:
        if step != self._step or self._board.calm:
            return False
        self._left -= 1
        return self._left == 0

    def _strike(self) -> signal.Signals:
        self._board.count(self._step, killed=self._kills)
        self._journal.write("killed" if self._kills else "froze", step=self._step)
        return signal.SIGKILL if self._kills else signal.SIGSTOP
