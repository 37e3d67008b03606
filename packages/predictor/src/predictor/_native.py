"""
Calls LightGBM's C library directly.

Three rules avoid its known traps:

* Always one LightGBM thread. LightGBM sizes buffers by a process-wide thread count, so a change of that count while
  another thread predicts crashes the process. And a team of OpenMP threads that exists at a fork makes the child hang;
  with one thread there is no team. Large batches are split over Python threads instead (`_runtime.py`).
* Always all trees. LightGBM stores the iteration range on the booster, so two ranges at once give wrong numbers.
* One FastConfig per thread, because it owns a row buffer and a mutex.

LightGBM's Python package is not imported: it imports SciPy, and converts integers to float32.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import struct
import sys
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor.errors import EngineError, EngineUnavailable

__all__ = ["CONTRIB", "LEAF", "NORMAL", "RAW", "Booster", "RowCall", "engine_name", "library"]

NORMAL, RAW, LEAF, CONTRIB = 0, 1, 2, 3  # C_API_PREDICT_* in LightGBM's c_api.h
_FLOAT64 = 1  # C_API_DTYPE_FLOAT64
_ROW_MAJOR = 1
_ALL = (0, -1)  # start_iteration, num_iteration
_PARAMETERS = b"num_threads=1 verbosity=-1"

_FILES = {"win32": "lib_lightgbm.dll", "darwin": "lib_lightgbm.dylib"}


class _Library:
    """The shared library, opened twice: a call through `free` releases the GIL, a call through `held` keeps it."""

    def __init__(self, path: Path) -> None:
        try:
            self.free: Any = ctypes.CDLL(str(path))
            self.held: Any = ctypes.PyDLL(str(path))
        except OSError as error:
            raise EngineUnavailable(
                f"LightGBM's library could not be opened ({error}); reinstall lightgbm, and on Linux the OpenMP"
                " runtime (Debian: libgomp1)"
            ) from error
        handle, pointer, integer = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int
        for library in (self.free, self.held):
            library.LGBM_GetLastError.restype = ctypes.c_char_p
            library.LGBM_BoosterLoadModelFromString.argtypes = (ctypes.c_char_p, pointer, pointer)
            library.LGBM_BoosterFree.argtypes = (handle,)
            library.LGBM_FastConfigFree.argtypes = (handle,)
            library.LGBM_DatasetFree.argtypes = (handle,)
            library.LGBM_BoosterPredictForMat.argtypes = (
                *(handle, pointer, integer, ctypes.c_int32, ctypes.c_int32, integer),
                *(integer, integer, integer, ctypes.c_char_p, pointer, pointer),
            )
            library.LGBM_BoosterPredictForMatSingleRowFastInit.argtypes = (
                *(handle, integer, integer, integer, integer, ctypes.c_int32, ctypes.c_char_p, pointer),
            )

    def check(self, status: int) -> None:
        if status != 0:
            text = self.free.LGBM_GetLastError().decode("utf-8", "replace")
            raise EngineError(f"LightGBM refused: {text[:300]}")

    def use_one_thread(self) -> None:
        """
        Set LightGBM's process-wide default to one thread, before its first parallel region.

        Loading a model takes no parameters and would start a team of OpenMP threads. The only call that sets the
        default without a model is to make a data set, so this makes one of 1 x 1 and frees it (about 30 us).
        """
        cell, dataset = (ctypes.c_double * 1)(0.0), ctypes.c_void_p()
        self.check(
            self.free.LGBM_DatasetCreateFromMat(
                cell, _FLOAT64, 1, 1, _ROW_MAJOR, _PARAMETERS, None, ctypes.byref(dataset)
            )
        )
        self.free.LGBM_DatasetFree(dataset)


@cache
def library() -> _Library:
    """
    Open LightGBM's shared library once, without importing the `lightgbm` package.

    Raises:
        EngineUnavailable: lightgbm is not installed, or its library cannot be opened.
    """
    spec = importlib.util.find_spec("lightgbm")
    name = _FILES.get(sys.platform, "lib_lightgbm.so")
    for root in (spec.submodule_search_locations or ()) if spec is not None else ():
        for folder in ("lib", "bin"):
            path = Path(root, folder, name)
            if path.is_file():
                return _Library(path)
    raise EngineUnavailable("LightGBM's library was not found; install the 'lightgbm' distribution")


def engine_name() -> str:
    """Return the engine and its version, such as `LightGBM 4.7.0 (C API)`."""
    return f"LightGBM {importlib.metadata.version('lightgbm')} (C API)"


class Booster:
    """A model loaded by LightGBM; its memory is freed with this object."""

    def __init__(self, text: bytes, *, width: int) -> None:
        """Load *text*, which must come from `ParsedModel.lightgbm_text`: LightGBM aborts the process on a bad one."""
        lib = library()
        lib.use_one_thread()
        handle, iterations = ctypes.c_void_p(), ctypes.c_int()
        lib.check(
            lib.free.LGBM_BoosterLoadModelFromString(text, ctypes.byref(iterations), ctypes.byref(handle))
        )
        self.handle = handle
        self.width = width
        self._library = lib
        weakref.finalize(self, lib.free.LGBM_BoosterFree, handle).atexit = False

    def predict(
        self, rows: NDArray[np.float64], kind: int, *, per_row: int, hold_gil: bool = False
    ) -> NDArray[np.float64]:
        """
        Return float64 [n, per_row] for float64 *rows* [n, width]; any number of threads may call at once.

        The shape and type of *rows* are checked here, because LightGBM would read past the end of a wrong buffer.
        """
        if rows.dtype != np.float64 or rows.ndim != 2 or rows.shape[1] != self.width:
            raise EngineError(f"rows must be float64 [n, {self.width}]")
        rows = np.ascontiguousarray(rows)
        out = np.empty((len(rows), per_row), dtype=np.float64)
        if len(rows) == 0:  # LightGBM refuses an empty matrix
            return out
        written = ctypes.c_int64()
        call = (self._library.held if hold_gil else self._library.free).LGBM_BoosterPredictForMat
        self._library.check(
            call(
                self.handle,
                rows.ctypes.data,
                _FLOAT64,
                len(rows),
                self.width,
                _ROW_MAJOR,
                kind,
                *_ALL,
                _PARAMETERS,
                ctypes.byref(written),
                out.ctypes.data,
            )
        )
        if written.value != out.size:
            raise EngineError(f"LightGBM wrote {written.value} values where {out.size} were expected")
        return out


class RowCall:
    """
    Predicts single rows on one thread, with its own row buffer, output buffer and FastConfig.

    It keeps its booster alive, so the model cannot be freed during a call. A signal handler or a finalizer may call it
    in the middle of another call on the same thread; the interrupted call then starts again.
    """

    __slots__ = (
        "__weakref__",
        "_arguments",
        "_booster",
        "_call",
        "_check",
        "_output",
        "_pack",
        "_row",
        "_turn",
    )

    def __init__(self, booster: Booster, *, per_row: int, hold_gil: bool) -> None:
        lib = library()
        config = ctypes.c_void_p()
        lib.check(
            lib.free.LGBM_BoosterPredictForMatSingleRowFastInit(
                booster.handle, NORMAL, *_ALL, _FLOAT64, booster.width, _PARAMETERS, ctypes.byref(config)
            )
        )
        self._booster = booster
        self._row = bytearray(8 * booster.width)
        self._output = np.zeros(per_row, dtype=np.float64)
        self._pack: Callable[..., None] = struct.Struct(f"={booster.width}d").pack_into
        self._call = (lib.held if hold_gil else lib.free).LGBM_BoosterPredictForMatSingleRowFast
        self._check = lib.check
        self._turn = 0
        # Converted once, so that ctypes need not convert them in each call.
        self._arguments = (
            config,
            (ctypes.c_char * len(self._row)).from_buffer(self._row),
            ctypes.byref(ctypes.c_int64()),
            ctypes.c_void_p(self._output.ctypes.data),
        )
        weakref.finalize(self, lib.free.LGBM_FastConfigFree, config).atexit = False

    def __call__(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Return float64 [per_row] for *values*, exactly `width` numbers in model order."""
        while True:
            self._turn = turn = self._turn + 1
            self._pack(self._row, 0, *values)
            status = self._call(*self._arguments)
            if status != 0:
                self._check(status)
            answer = self._output.copy()
            if self._turn == turn:  # no nested call has overwritten the buffers
                return answer
