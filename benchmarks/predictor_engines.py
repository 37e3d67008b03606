"""The engines to compare the predictor with, each as functions for one row and for batches of float64 rows."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

__all__ = ["Engine", "c_fast", "peers"]

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Engine:
    """An engine with a model: *batch* predicts float64 [n, features], *row* (if not None) a list of floats."""

    name: str
    batch: Callable[[Rows], Any]
    row: Callable[[list[float]], Any] | None = None


def c_fast(booster: lgb.Booster) -> Engine:
    """Return LightGBM's single-row FastConfig call through ctypes, without checks, and its call for matrices."""
    library, width, outputs = (
        ctypes.CDLL(lgb.basic._LIB._name),
        booster.num_feature(),
        booster.num_model_per_iteration(),
    )
    config, written = ctypes.c_void_p(), ctypes.c_int64()
    row, out = (ctypes.c_double * width)(), (ctypes.c_double * outputs)()
    parameters = b"num_threads=1 verbosity=-1"
    started = library.LGBM_BoosterPredictForMatSingleRowFastInit(
        booster._handle, 0, 0, -1, 1, ctypes.c_int32(width), parameters, ctypes.byref(config)
    )
    assert started == 0
    call = library.LGBM_BoosterPredictForMatSingleRowFast
    arguments = (config, row, ctypes.byref(written), out)

    def predict(values: list[float]) -> Any:
        row[:] = values
        call(*arguments)
        return out

    def predict_matrix(rows: Rows) -> Rows:
        answers = np.empty((len(rows), outputs))
        done = library.LGBM_BoosterPredictForMat(
            booster._handle,
            ctypes.c_void_p(rows.ctypes.data),
            1,
            ctypes.c_int32(len(rows)),
            ctypes.c_int32(width),
            1,
            0,
            0,
            -1,
            parameters,
            ctypes.byref(written),
            ctypes.c_void_p(answers.ctypes.data),
        )
        assert done == 0
        return answers

    return Engine("LightGBM's C call", predict_matrix, predict)


def lleaves(path: Path, outputs: int) -> Engine | None:
    """Return lleaves, with one thread; for one row, its compiled function with fixed buffers. None if not installed."""
    try:
        import lleaves as compiler
    except ImportError:
        return None
    model = compiler.Model(model_file=str(path))
    model.compile()
    row, out = (ctypes.c_double * model.num_feature())(), (ctypes.c_double * outputs)()

    def predict(values: list[float]) -> Any:
        row[:] = values
        model._c_entry_func(row, out, 0, 1)
        return out

    return Engine("lleaves", lambda rows: model.predict(rows, n_jobs=1), predict)


def lignum(path: Path) -> Engine | None:
    """Return pylignum with its trees compiled; None if not installed."""
    try:
        import lignum as engine
    except ImportError:
        return None
    model = engine.load(str(path))
    model.compile()
    return Engine("pylignum", model.predict)


def peers(path: Path, booster: lgb.Booster) -> list[Engine]:
    """Return LightGBM's C call and the installed engines; lleaves only up to 100 trees, because it compiles slowly."""
    found = [c_fast(booster), lignum(path)]
    if booster.num_trees() <= 100:
        found.append(lleaves(path, booster.num_model_per_iteration()))
    return [engine for engine in found if engine is not None]
