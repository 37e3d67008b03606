"""
What a verified prediction costs beside LightGBM's own ways, in one process, on varied rows, with parity checked.

    python benchmarks/predictor_bench.py            a table of ratios
    python benchmarks/predictor_bench.py --check    exit 1 if a gate of this file is missed

Engines take turns in small blocks, so that a noisy moment meets all of them. Rows vary, because a repeated row
teaches the branch predictor and reads up to three times too fast. Ratios carry from machine to machine; times do not.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import lzma
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from predictor_models import PARAMETERS, trading3

from predictor import Batcher, Model, ModelSlot, RowPolicy, write_manifest

PUBLIC = Path(__file__).parents[1] / "packages/predictor/tests/models"
BLOCK, ROUNDS = 100, 20


@dataclass(frozen=True)
class Gate:
    """A ratio and the bound it must keep."""

    name: str
    ratio: float
    least: float | None = None
    most: float | None = None

    @property
    def holds(self) -> bool:
        return (self.least is None or self.ratio >= self.least) and (
            self.most is None or self.ratio <= self.most
        )

    def __str__(self) -> str:
        bound = f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"
        return f"{'ok  ' if self.holds else 'MISS'} {self.name:<52} {self.ratio:8.2f}  ({bound})"


def take_turns(
    calls: dict[str, tuple[Callable[[Any], Any], Sequence[Any]]],
) -> dict[str, NDArray[np.float64]]:
    """Return microseconds per call for each engine, over ROUNDS blocks of BLOCK calls, engines alternating."""
    times: dict[str, list[int]] = {name: [] for name in calls}
    for turn in range(ROUNDS + 1):
        for name, (call, arguments) in calls.items():
            for step in range(BLOCK):
                argument = arguments[(turn * BLOCK + step) % len(arguments)]
                start = perf_counter_ns()
                call(argument)
                if turn:  # the first round warms up
                    times[name].append(perf_counter_ns() - start)
    return {name: np.array(values) / 1e3 for name, values in times.items()}


def c_fast(booster: lgb.Booster, outputs: int) -> Callable[[list[float]], None]:
    """LightGBM's single-row fast call, bound by hand and unchecked: the floor that checking is measured against."""
    library, width = ctypes.CDLL(lgb.basic._LIB._name), booster.num_feature()
    config, written = ctypes.c_void_p(), ctypes.c_int64()
    row, out = (ctypes.c_double * width)(), (ctypes.c_double * outputs)()
    started = library.LGBM_BoosterPredictForMatSingleRowFastInit(
        booster._handle,
        0,
        0,
        -1,
        1,
        ctypes.c_int32(width),
        b"num_threads=1 verbosity=-1",
        ctypes.byref(config),
    )
    assert started == 0
    call, arguments = (
        library.LGBM_BoosterPredictForMatSingleRowFast,
        (config, row, ctypes.byref(written), out),
    )

    def predict(values: list[float]) -> None:
        row[:] = values
        call(*arguments)

    return predict


def one_row(
    name: str, model: Model, booster: lgb.Booster, rows: NDArray[np.float64], more: dict[str, Any]
) -> dict[str, float]:
    lists, singles = rows.tolist(), [row[None] for row in rows]
    names = model.info.features
    times = take_turns(
        {
            "Booster.predict": (lambda row: booster.predict(row, num_threads=1), singles),
            "C fast, unchecked": (c_fast(booster, model.info.n_classes), lists),
            "predict_row(list)": (model.predict_row, lists),
            "predict_row(array)": (model.predict_row, list(rows)),
            "predict_row(mapping)": (
                model.predict_row,
                [dict(zip(names, row, strict=True)) for row in lists],
            ),
            **more,
        }
    )
    print(f"\n{name}: {model.info.n_trees} trees, {len(names)} features, one row, us")
    floor = np.median(times["Booster.predict"])
    for engine, values in times.items():
        p50, p99 = np.percentile(values, (50, 99))
        print(f"  {engine:<28} p50 {p50:8.1f}   p99 {p99:8.1f}   {floor / p50:6.2f} x Booster")
    return {engine: float(np.median(values)) for engine, values in times.items()}


def differing_rows(model: Model, booster: lgb.Booster, rows: NDArray[np.float64]) -> int:
    """Rows whose bits differ from Booster.predict, by batch or one by one."""
    truth = np.asarray(booster.predict(rows, num_threads=1)).reshape(len(rows), -1)
    batch = model.predict(rows).reshape(len(rows), -1)
    singles = np.array([model.predict_row(row) for row in rows[:2_000]])
    wrong = (batch.view(np.int64) != truth.view(np.int64)).any(axis=1)
    return int(wrong.sum() + (singles.view(np.int64) != truth[:2_000].view(np.int64)).any(axis=1).sum())


def batches(model: Model, booster: lgb.Booster, rows: NDArray[np.float64]) -> dict[int, float]:
    print("  batches, ratio to Booster.predict(num_threads=1)")
    ratios = {}
    for size in (8, 64, 1_024, 16_384):
        count = max(6, 8192 // size)
        pieces = [np.take(rows, range(k * size, (k + 1) * size), axis=0, mode="wrap") for k in range(count)]
        times: dict[str, list[int]] = {"ours": [], "theirs": []}
        calls = {"ours": model.predict, "theirs": lambda piece: booster.predict(piece, num_threads=1)}
        for turn in range(count):
            for offset, (name, call) in enumerate(calls.items()):  # never the same rows one after the other
                start = perf_counter_ns()
                call(pieces[(turn + offset * count // 2) % count])
                times[name].append(perf_counter_ns() - start)
        ratios[size] = float(np.median(times["theirs"]) / np.median(times["ours"]))
        print(f"    {size:>5} rows  {np.median(times['ours']) / 1e3:10.1f} us   {ratios[size]:6.2f} x")
    return ratios


def threads_ratio(model: Model, rows: NDArray[np.float64], count: int = 8, calls: int = 4_000) -> float:
    """Calls per second of *count* threads together, to those of one thread; a fixed number of calls in all."""
    lists = rows.tolist()

    def rate(workers: int) -> float:
        def work(offset: int) -> None:
            for step in range(calls // workers):
                model.predict_row(lists[(offset + step) % len(lists)])

        threads = [threading.Thread(target=work, args=(index * 997,)) for index in range(workers)]
        start = perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return calls / (perf_counter() - start)

    rates = [(rate(1), rate(count)) for _ in range(5)]
    return float(np.median([many / one for one, many in rates]))


def public(name: str, folder: Path) -> tuple[Model, lgb.Booster, NDArray[np.float64]]:
    """A model that others trained, and rows drawn around its own split values."""
    path = folder / f"{name}.txt"
    path.write_bytes(lzma.decompress((PUBLIC / f"{name}.txt.xz").read_bytes()))
    booster = lgb.Booster(model_file=path)
    rng = np.random.default_rng(3)
    lines = path.read_text().splitlines()
    infos = next(line for line in lines if line.startswith("feature_infos=")).partition("=")[2].split(" ")
    columns = []
    for info in infos:
        if info.startswith("["):
            low, high = map(float, info.strip("[]").split(":"))
            columns.append(rng.uniform(low, high, 5_000))
        else:
            columns.append(rng.choice([float(code) for code in info.split(":") if int(code) >= 0], 5_000))
    codes = {
        label: range(int(max(map(int, info.split(":")))) + 1)
        for label, info in zip(booster.feature_name(), infos, strict=True)
        if not info.startswith("[")
    }
    rows = np.ascontiguousarray(np.stack(columns, axis=1))
    write_manifest(
        path, rows, name=name, version="public", categories=codes, policy=RowPolicy(unseen="allow")
    )
    return Model.load(path), booster, rows


def load_times(path: Path) -> tuple[float, float]:
    """Milliseconds from the file to a verified model, and to LightGBM's unverified one: medians of seven."""
    times = []
    for _ in range(7):
        start = perf_counter()
        Model.load(path)
        middle = perf_counter()
        lgb.Booster(model_file=path)
        times.append((middle - start, perf_counter() - middle))
    ours, theirs = np.median(times, axis=0) * 1e3
    return float(ours), float(theirs)


def explain_times(
    model: Model, booster: lgb.Booster, rows: NDArray[np.float64]
) -> tuple[float, float, float]:
    """
    Microseconds for one row's contributions, ours and `pred_contrib`'s, medians over 200 rows each.

    Third, the largest difference of the two, as a share of the largest contribution.
    """
    ours, theirs, error = [], [], 0.0
    for row, other in zip(rows[:200], rows[200:400], strict=True):  # of its own for each engine
        start = perf_counter_ns()
        explained = model.explain(row[None])
        middle = perf_counter_ns()
        booster.predict(other[None], num_threads=1, pred_contrib=True)
        theirs.append((perf_counter_ns() - middle) / 1e3)
        ours.append((middle - start) / 1e3)
        truth = np.asarray(booster.predict(row[None], num_threads=1, pred_contrib=True))
        joined = np.concatenate([explained.contributions, explained.bias[..., None]], axis=-1)
        error = max(error, float(np.abs(joined.reshape(truth.shape) - truth).max() / np.abs(truth).max()))
    return float(np.median(ours)), float(np.median(theirs)), error


async def requests_per_second(
    predict: Callable[[Any], Any], rows: list[list[float]], *, clients: int
) -> float:
    """Closed loop: each of *clients* coroutines asks for its next row when it has its answer."""
    count = 6_000

    async def client(offset: int) -> None:
        for step in range(count // clients):
            await predict(rows[(offset + step) % len(rows)])

    start = perf_counter()
    await asyncio.gather(*(client(index * 61) for index in range(clients)))
    return count / (perf_counter() - start)


def batching(model: Model, rows: NDArray[np.float64]) -> None:
    """Print requests a second of one event loop: inline against the batcher."""
    lists = rows.tolist()

    async def inline(row: list[float]) -> Any:
        await asyncio.sleep(0)  # what a request handler does between rows
        return model.predict_row(row)

    print("  one event loop, requests a second")
    for clients in (1, 64):
        rates: dict[str, list[float]] = {"inline": [], "Batcher": [], "Batcher, 1 ms": []}
        for _ in range(5):
            for name, wait in (("inline", None), ("Batcher", 0.0), ("Batcher, 1 ms", 0.001)):
                if wait and clients == 1:
                    continue  # a lone client waits its millisecond out: a thousand a second, by arithmetic
                call = inline if wait is None else Batcher(ModelSlot(model), max_wait=wait).predict
                rates[name].append(asyncio.run(requests_per_second(call, lists, clients=clients)))
        medians = (f"{name} {np.median(values):8.0f}" for name, values in rates.items() if values)
        print(f"    {clients:>3} clients   " + "   ".join(medians))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="exit 1 if a gate is missed")
    args = parser.parse_args()
    gates: list[Gate] = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        path = folder / "trading3.txt"
        trained, rows = trading3(path)
        write_manifest(path, rows, name="trading3", version="1", classes=("SELL", "HOLD", "BUY"))
        booster, model = lgb.Booster(model_file=path), Model.load(path)
        native = "kernel" in model.info.engine
        print(f"engine: {model.info.engine}")
        classifier = lgb.LGBMClassifier(
            n_estimators=100, **{k: v for k, v in PARAMETERS.items() if k != "num_class"}
        )
        classifier.fit(rows, np.asarray(trained.predict(rows, num_threads=1)).argmax(axis=1))
        frames = [pd.DataFrame(row[None], columns=list(model.info.features)) for row in rows[:2_000]]
        times = one_row(
            "trading3",
            model,
            booster,
            rows,
            {
                "LGBMClassifier.predict_proba": (classifier.predict_proba, [row[None] for row in rows]),
                "Booster.predict(DataFrame)": (lambda f: booster.predict(f, num_threads=1), frames),
                "predict(DataFrame)": (model.predict, frames),
            },
        )
        ratios = batches(model, booster, rows)
        explaining, contributions, error = explain_times(model, booster, rows)
        print(
            f"  explain, one row: {explaining:.0f} us   {contributions / explaining:6.2f} x   error {error:.1e}"
        )
        batching(model, rows)
        load, unverified = load_times(path)
        megabytes = path.stat().st_size / 1e6
        print(f"  load {megabytes:.1f} MB: verified {load:.0f} ms, lgb.Booster {unverified:.1f} ms")
        gates += [
            Gate(
                "trading3: one row (list), times Booster.predict",
                times["Booster.predict"] / times["predict_row(list)"],
                least=15.0 if native else 2.0,
            ),
            Gate(
                "trading3: one row (array), times Booster.predict",
                times["Booster.predict"] / times["predict_row(array)"],
                least=15.0 if native else 2.0,
            ),
            Gate(
                "trading3: one row (list), cost to C fast",
                times["predict_row(list)"] / times["C fast, unchecked"],
                most=1.25,
            ),
            Gate(
                "trading3: one row, times LGBMClassifier.predict_proba",
                times["LGBMClassifier.predict_proba"] / times["predict_row(list)"],
                least=15.0,
            ),
            Gate("trading3: batch of 64, times Booster.predict", ratios[64], least=5.0 if native else 0.95),
            Gate(
                "trading3: batch of 1,024, times Booster.predict",
                ratios[1_024],
                least=16.0 if native else 0.95,
            ),
            Gate(
                "trading3: batch of 16,384, times Booster.predict",
                ratios[16_384],
                least=16.0 if native else 0.95,
            ),
            Gate(
                "trading3: explain one row, times pred_contrib",
                contributions / explaining,
                least=2.0 if native else 0.8,
            ),
            Gate("trading3: error of explanations, of the largest", error, most=1e-12),
            Gate("trading3: 8 threads, rate to one thread", threads_ratio(model, rows), least=0.85),
            Gate("trading3: verified load, cost to lgb.Booster", load / unverified, most=25.0),
            Gate(
                "trading3: rows that differ from Booster.predict",
                differing_rows(model, booster, rows),
                most=0,
            ),
        ]
        for name in ("NYC_taxi", "airline", "multiclass", "mtpl2"):
            other, theirs, drawn = public(name, folder)
            found = one_row(name, other, theirs, drawn, {})
            if name == "mtpl2":
                batching(other, drawn)
            # Where a thousand trees are walked, every way costs the walk: only the cost over C fast is gated.
            least = 2.0 if other.info.n_trees <= 300 else 1.0
            gates.append(
                Gate(
                    f"{name}: one row (list), times Booster.predict",
                    found["Booster.predict"] / found["predict_row(list)"],
                    least=least,
                )
            )
            gates.append(
                Gate(
                    f"{name}: rows that differ from Booster.predict",
                    differing_rows(other, theirs, drawn),
                    most=0,
                )
            )
    print()
    for gate in gates:
        print(gate)
    return int(args.check and not all(gate.holds for gate in gates))


if __name__ == "__main__":
    raise SystemExit(main())
