"""
Runs the engines of one loaded model: chooses the engine and the threads, and resets both after a fork.

The kernel is immutable memory, so a forked child can use it. LightGBM's part is a booster, and a `RowCall` for each
thread. A forked child never touches the parent's; it loads its own when it first needs them.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from predictor._engine import Kernel, Refusal, make_kernel
from predictor._model_file import ParsedModel
from predictor._native import CONTRIB, Booster, RowCall
from predictor._self_check import agrees
from predictor.errors import EngineError, ModelTextError

__all__ = ["Runtime"]

# Estimated nanoseconds per call. A shorter call keeps the GIL: in a busy process, to get the GIL back costs more than
# other threads lose by waiting 50 us for it.
_HOLD_GIL_BELOW = 45_000
_ONE_CALL_BELOW = 1_000_000  # a longer call is made from Python, which then takes less than a hundredth of it
_SPLIT_ABOVE = 4_500_000  # a longer call is split over several threads
_WALK_NS = 30  # in LightGBM, one row through one tree
_CONTRIB_COST = 50  # in LightGBM, how many times a row's contributions cost more than its prediction
_Call = Callable[..., NDArray[Any]]  # rows, and whether to release the GIL


class Runtime:
    """Predicts encoded rows; safe to share among threads."""

    def __init__(
        self,
        parsed: ParsedModel,
        *,
        parse: Callable[[], ParsedModel],
        cells: Any,
        takes_codes: bool,
        threads: int,
    ) -> None:
        """
        Load the engines of *parsed*.

        Args:
            parsed: The checked model.
            parse: Returns *parsed* again; called in a forked child.
            cells: The extension's reader of plain cells, or None.
            takes_codes: Whether the numbers of an array are the codes of its categories.
            threads: The most threads to split one large batch over, >= 1.

        Raises:
            ModelTextError: LightGBM does not load the text.
        """
        self._parse = parse
        self._outputs, self._trees = parsed.summary.n_outputs, parsed.summary.n_trees
        self._width, self._is_linear = len(parsed.summary.feature_names), parsed.summary.is_linear
        self.threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self.split_above = _SPLIT_ABOVE  # nanoseconds
        self.kernel = make_kernel(parsed)
        self._start(parsed)  # the check of the kernel, below, needs LightGBM
        self.plain_row: Callable[[Any], NDArray[np.float64] | None] | None = None
        """Predicts one row if its cells are plain; returns None if the schema must read it. None without a kernel."""
        self.plain_matrix: Callable[[Any], NDArray[np.float64] | None] | None = None
        """The same for the rows of an array, if there are not too many."""
        self.kernel = self._checked(self.kernel, parsed)
        if isinstance(self.kernel, Kernel):
            hold_rows = self.kernel.most_rows(_HOLD_GIL_BELOW) if self.kernel.row_ns < _HOLD_GIL_BELOW else 0
            most_rows = self.kernel.most_rows(_ONE_CALL_BELOW) if takes_codes else 0
            self.kernel.bind(cells, hold_rows=hold_rows, most_rows=most_rows)
            self.plain_row, self.plain_matrix = self.kernel.plain_row, self.kernel.plain_matrix
        _runtimes.add(self)

    def row(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Return float64 [n_outputs] for one encoded row."""
        if isinstance(self.kernel, Kernel):
            return cast("NDArray[np.float64]", self.kernel.encoded_row(values))
        try:
            call = self._local.call
        except AttributeError:
            call = self._new_row_call()
        return cast("NDArray[np.float64]", call(values))

    def run(self, matrix: NDArray[np.float64], kind: int, per_row: int) -> NDArray[Any]:
        """Return *per_row* numbers of *kind* for each row; a large batch is split over threads."""
        kernel = self.kernel
        if isinstance(kernel, Kernel) and (kind != CONTRIB or kernel.explains):
            cost = kernel.cost(kind)
            if (estimate := kernel.estimate(len(matrix), kind)) < self.split_above:  # the usual case
                return kernel.predict(matrix, kind, release=estimate >= _HOLD_GIL_BELOW)
            answer: _Call = partial(kernel.predict, kind=kind)
        else:
            self._refresh()
            booster = self._booster
            cost = self._trees * _WALK_NS * (_CONTRIB_COST if kind == CONTRIB else 1)

            def answer(rows: NDArray[np.float64], *, release: bool) -> NDArray[Any]:
                return booster.predict(rows, kind, per_row=per_row, hold_gil=not release)

        step = max(1, math.ceil(self.split_above / (2 * cost)))
        if self.threads > 1 and len(matrix) >= 2 * step:
            return self._split(matrix, answer, step)
        return answer(matrix, release=len(matrix) * cost >= _HOLD_GIL_BELOW)

    def _split(self, matrix: NDArray[np.float64], answer: _Call, step: int) -> NDArray[Any]:
        """Split one batch over threads; rows are independent, so the split does not change a bit of the answers."""
        with self._pool_guard:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="predictor")
            pool = self._pool
        pieces = np.array_split(matrix, min(self.threads, len(matrix) // step))
        return np.concatenate(list(pool.map(partial(answer, release=True), pieces)))

    def _start(self, parsed: ParsedModel) -> None:
        """Load LightGBM's part and reset threads; called again in a forked child."""
        try:
            booster = Booster(parsed.lightgbm_text(), width=self._width)
            if not self._is_linear and not (isinstance(self.kernel, Kernel) and self.kernel.explains):
                _fill_tables(booster, self._outputs)
        except EngineError as error:  # no known file passes `parse_model_text` and fails here
            raise ModelTextError(str(error)) from error
        self._booster = booster
        self._local = threading.local()
        self._pool = None
        self._pool_guard = threading.Lock()
        self._is_stale = False

    def _checked(self, kernel: Kernel | Refusal, parsed: ParsedModel) -> Kernel | Refusal:
        """Return the kernel if it gives LightGBM's numbers on this machine, else the reason why it does not serve."""
        if isinstance(kernel, Refusal):
            return kernel
        if not agrees(kernel, self._booster, parsed):
            if kernel.explains:
                _fill_tables(self._booster, self._outputs)
            return Refusal("self_check")
        return kernel

    def _new_row_call(self) -> RowCall:
        self._refresh()
        self._local.call = call = RowCall(
            self._booster, per_row=self._outputs, hold_gil=self._trees * _WALK_NS < _HOLD_GIL_BELOW
        )
        return call

    def _refresh(self) -> None:
        if self._is_stale:
            with _fork_guard:
                if self._is_stale:
                    self._start(self._parse())

    def _forget(self) -> None:
        """
        In a forked child: keep the parent's LightGBM objects alive for ever, unused, and mark them as stale.

        To free them could wait for a lock of a thread that does not exist in the child. Their pages are shared with the
        parent anyway. The kernel has no locks or threads, so the child goes on using it.
        """
        _abandoned.append((self._booster, self._local))
        self._is_stale = True
        self._local = threading.local()
        self._pool, self._pool_guard = None, threading.Lock()  # its threads did not survive either


def _fill_tables(booster: Booster, outputs: int) -> None:
    """Ask for contributions once: the first call fills tables inside the booster, which is not thread-safe."""
    booster.predict(np.zeros((1, booster.width)), CONTRIB, per_row=outputs * (booster.width + 1))


_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()
_fork_guard = threading.Lock()
_abandoned: list[object] = []


def _after_fork() -> None:
    global _fork_guard  # noqa: PLW0603  in the child, a lock that the parent held is never released
    _fork_guard = threading.Lock()
    for runtime in list(_runtimes):
        runtime._forget()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
