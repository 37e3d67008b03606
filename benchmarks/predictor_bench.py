"""
The time of a verified prediction beside LightGBM's own calls and other engines, in one process, with parity checked.

    python benchmarks/predictor_bench.py                      a table for each model, then the gates
    python benchmarks/predictor_bench.py --check              exit 1 if a gate is missed
    uv run --with lleaves==1.3.0 --with "llvmlite<0.45" --with pylignum python benchmarks/predictor_bench.py
                                                              with these engines too

Engines take turns in blocks, in another order each time, so that other work on the machine affects all of them. Each
engine has its own rows: a row that another engine has just read is in the caches, and a repeated row trains the branch
predictor. Ratios are comparable between machines; times are not.
"""

from __future__ import annotations

import argparse
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
from harness.results import add_options, finish
from numpy.typing import NDArray
from predictor_engines import Engine, peers
from predictor_gates import Gate, ratio_gate
from predictor_loop import batching
from predictor_models import edge_case_rows, public, trading3, train_on_frame, train_synthetic

from predictor import Model, RowPolicy, write_manifest
from predictor._engine import Kernel, make_kernel
from predictor._model_file import parse_model_text

LENIENT = RowPolicy(null="allow", infinite="allow", unseen="allow")
BOOSTER = "Booster.predict"
Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Subject:
    """A model, loaded by each engine, and the rows to predict."""

    name: str
    model: Model
    booster: lgb.Booster
    rows: Rows
    edge_cases: Rows  # thresholds, their neighbours, nulls, infinities
    others: list[Engine]

    @classmethod
    def load(cls, name: str, path: Path, rows: Rows, *, others: bool = False, **manifest: Any) -> Subject:
        write_manifest(path, rows, name=name, version="1", policy=LENIENT, **manifest)
        booster = lgb.Booster(model_file=path)
        found = peers(path, booster) if others else []
        return cls(name, Model.load(path), booster, rows, edge_case_rows(rows, path, count=2_000), found)

    @property
    def level(self) -> str:
        kernel = self.model._runtime.kernel
        return kernel.level if isinstance(kernel, Kernel) else "lightgbm"

    def theirs(self, rows: Rows, **options: Any) -> Rows:
        return np.asarray(self.booster.predict(rows, num_threads=1, **options))


Call = tuple[Callable[[Any], Any], Sequence[Any]]  # a function and the arguments to call it with


def take_turns(calls: dict[str, Call], *, block: int, rounds: int) -> dict[str, NDArray[np.float64]]:
    """Return microseconds per call for each engine, over *rounds* blocks; the first round warms up."""
    times: dict[str, list[int]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            call, arguments = calls[name]
            for step in range(block):
                argument = arguments[(turn * block + step) % len(arguments)]
                start = perf_counter_ns()
                call(argument)
                if turn:
                    times[name].append(perf_counter_ns() - start)
    return {name: np.array(values) / 1e3 for name, values in times.items()}


def show(title: str, times: dict[str, NDArray[np.float64]], exact: dict[str, str]) -> dict[str, float]:
    """Print medians and minima; return for each engine how many times as fast as Booster its median is."""
    floor, least = np.median(times[BOOSTER]), times[BOOSTER].min()
    print(f"  {title:<28} {'p50 us':>9} {'least':>9} {'p99':>9}  x Booster: p50  least   rows that differ")
    for engine, values in times.items():
        p50, p99 = np.percentile(values, (50, 99))
        print(
            f"    {engine:<26} {p50:9.1f} {values.min():9.1f} {p99:9.1f}"
            f"  {floor / p50:14.1f} {least / values.min():6.1f}   {exact.get(engine, '')}"
        )
    return {engine: float(floor / np.median(values)) for engine, values in times.items()}


def differing(got: Rows, truth: Rows) -> str:
    """Return how many rows differ by a bit, as text; NaN equals NaN."""
    got, truth = got.reshape(len(truth), -1), truth.reshape(len(truth), -1)
    wrong = (got.view(np.int64) != truth.view(np.int64)) & ~(np.isnan(got) & np.isnan(truth))
    return f"{int(wrong.any(axis=1).sum())} of {len(truth)}"


def exactness(subject: Subject) -> dict[str, str]:
    """Return for each engine how many of 2,000 training rows and 2,000 edge cases differ from Booster by a bit."""
    rows = np.concatenate([subject.rows[:2_000], subject.edge_cases])
    truth = subject.theirs(rows)
    found = {"predict": differing(subject.model.predict(rows), truth)}
    singles = np.array([subject.model.predict_row(row) for row in rows])
    found |= dict.fromkeys(
        ("predict_row(list)", "predict_row(array)", "predict_row(mapping)"), differing(singles, truth)
    )
    for engine in subject.others:
        found[engine.name] = differing(np.ascontiguousarray(engine.batch(rows), dtype=np.float64), truth)
    return found


def one_row(subject: Subject, exact: dict[str, str]) -> dict[str, float]:
    """Measure single rows as list, array and mapping, and with the other engines."""
    model, names = subject.model, subject.model.info.features
    rows = subject.rows[np.random.default_rng(1).permutation(len(subject.rows))]
    own = iter(np.array_split(rows, 4 + len(subject.others)))
    calls: dict[str, Call] = {
        BOOSTER: (subject.theirs, [row[None] for row in next(own)]),
        "predict_row(list)": (model.predict_row, next(own).tolist()),
        "predict_row(array)": (model.predict_row, list(next(own))),
        "predict_row(mapping)": (
            model.predict_row,
            [dict(zip(names, row, strict=True)) for row in next(own).tolist()],
        ),
    }
    for engine in subject.others:
        piece = next(own)
        if engine.row is not None:
            calls[engine.name] = (engine.row, piece.tolist())
        else:
            calls[engine.name] = (engine.batch, [row[None] for row in piece])
    return show("one row", take_turns(calls, block=100, rounds=20), exact)


def batches(subject: Subject, sizes: Sequence[int], exact: dict[str, str]) -> dict[int, dict[str, float]]:
    """Measure batches of each of *sizes*."""
    found = {}
    rng = np.random.default_rng(2)
    for size in sizes:
        calls: dict[str, Call] = {}
        count = max(3, min(50, 20_000 // size))
        engines = {BOOSTER: subject.theirs, "predict": subject.model.predict}
        engines |= {engine.name: engine.batch for engine in subject.others}
        for name, call in engines.items():
            pieces = [subject.rows[rng.integers(len(subject.rows), size=size)] for _ in range(count)]
            calls[name] = (call, pieces)
        block, rounds = max(1, 128 // size), max(5, min(20, 20_000 // size))
        found[size] = show(f"batch of {size:,}", take_turns(calls, block=block, rounds=rounds), exact)
    return found


def explanations(subject: Subject, *, gate: bool = True) -> list[Gate]:
    """Measure the contributions of one row and of batches of 64, and their largest difference from LightGBM's."""
    model, found = subject.model, []

    def theirs(rows: Rows) -> Rows:
        return subject.theirs(rows, pred_contrib=True)

    for size in (1, 64):
        half = len(subject.rows) // 2
        calls: dict[str, Call] = {}
        for name, call, own in (
            (BOOSTER, theirs, subject.rows[:half]),
            ("explain", model.explain, subject.rows[half:]),
        ):
            calls[name] = (call, [own[k : k + size] for k in range(0, half - size, size)])
        times = take_turns(calls, block=5 if size == 1 else 1, rounds=12 if size == 1 else 4)
        ratio = show(f"contributions of {size}", times, {})["explain"]
        if gate:
            name = f"SHAP {subject.name}" + (f", batches of {size}" if size > 1 else "")
            found.append(ratio_gate(f"SHAP {subject.name}", ratio, subject.level, name=name))
    rows = np.concatenate([subject.rows[:20], subject.edge_cases[:20]])
    explained, truth = model.explain(rows), theirs(rows)
    joined = np.concatenate([explained.contributions, explained.bias[..., None]], axis=-1)
    error = float(np.abs(joined.reshape(truth.shape) - truth).max() / np.abs(truth).max())
    name = f"SHAP {subject.name}: error, of the largest"
    found.append(Gate(name, error, 1e-12, at_least=False, unit="of the largest contribution"))
    return found


def frames(folder: Path) -> list[Gate]:
    """Measure frames with category columns, of one row and of 1,024: the ratio of our time to Booster's."""
    path, frame = train_on_frame(folder)
    write_manifest(path, frame, name="frame", version="1")
    booster, model, gates = lgb.Booster(model_file=path), Model.load(path), []

    def theirs(piece: pd.DataFrame) -> Rows:
        return np.asarray(booster.predict(piece, num_threads=1))

    print("\nframes with 5 columns of numbers and 3 of categories, 100 trees")
    exact = {"predict": differing(model.predict(frame[:2_000]), theirs(frame[:2_000]))}
    for size in (1, 1_024):
        pieces = [frame[k : k + size] for k in range(0, 8 * size, size)]
        calls: dict[str, Call] = {BOOSTER: (theirs, pieces[:4]), "predict": (model.predict, pieces[4:])}
        ratio = show(f"frame of {size:,}", take_turns(calls, block=4, rounds=10), exact)["predict"]
        gates.append(
            Gate(
                f"frame of {size:,} with categories, time to Booster's",
                1 / ratio,
                1.5,
                at_least=False,
                unit="× the time of Booster.predict",
            )
        )
    return gates


def threads(subject: Subject, count: int = 8, calls: int = 16_000) -> list[Gate]:
    """Measure the ratio of the rate of *count* threads together to that of one, and the p99 of their calls."""
    lists, predict = subject.rows.tolist(), subject.model.predict_row

    def rate(workers: int, waits: list[int]) -> float:
        def work(offset: int) -> None:
            for step in range(calls // workers):
                row = lists[(offset + step) % len(lists)]
                begin = perf_counter_ns()
                predict(row)
                waits.append(perf_counter_ns() - begin)

        pool = [threading.Thread(target=work, args=(index * 997,)) for index in range(workers)]
        start = perf_counter()
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join()
        return calls / (perf_counter() - start)

    waits: list[int] = []
    rates = [(rate(1, []), rate(count, waits)) for _ in range(5)]
    ratio = float(np.median([many / one for one, many in rates]))
    p99 = float(np.percentile(waits, 99)) / 1e3
    kernel = subject.level != "lightgbm"
    print(f"  {count} threads: {np.median([many for _, many in rates]):,.0f} rows/s, p99 {p99:.1f} us")
    return [
        Gate(
            f"{count} threads, rate to one thread",
            ratio,
            0.9 if kernel else 0.85,
            unit="× the rate of one thread",
        ),
        Gate(f"{count} threads, p99 us", p99, 10.0, at_least=False, binds=kernel, unit="us"),
    ]


def loading(path: Path) -> list[Gate]:
    """Measure the ratio of our verified load to LightGBM's unverified load, and the plan alone; medians of seven."""
    times, parsed = [], parse_model_text(path.read_bytes())
    for _ in range(7):
        start = perf_counter()
        Model.load(path)
        loaded = perf_counter()
        lgb.Booster(model_file=path)
        unverified = perf_counter()
        make_kernel(parsed)
        times.append((loaded - start, unverified - loaded, perf_counter() - unverified))
    ours, theirs, plan = np.median(times, axis=0) * 1e3
    print(
        f"  load {path.stat().st_size / 1e6:.1f} MB: verified {ours:.1f} ms, plan {plan:.1f} ms,"
        f" lgb.Booster {theirs:.1f} ms"
    )
    return [
        Gate(
            "trading3: verified load, cost to lgb.Booster",
            ours / theirs,
            25.0,
            at_least=False,
            unit="× the time of lgb.Booster",
        ),
        Gate("trading3: plan, ms", plan, 30.0, 8.0, at_least=False, unit="ms"),
    ]


def parity(subject: Subject, exact: dict[str, str]) -> Gate:
    wrong = sum(int(exact[name].split(" ")[0]) for name in ("predict", "predict_row(list)"))
    name = f"{subject.name}: rows that differ from Booster.predict"
    return Gate(name, wrong, 0, at_least=False, unit="rows of 4,000")


def measure_trading3(folder: Path) -> list[Gate]:
    path = folder / "trading3.txt"
    _, rows = trading3(path)
    subject = Subject.load("trading3", path, rows, others=True, classes=("SELL", "HOLD", "BUY"))
    print(
        f"\ntrading3: {subject.model.info.n_trees} trees, {rows.shape[1]} features; {subject.model.info.engine}"
    )
    exact, level = exactness(subject), subject.level
    singles, many = one_row(subject, exact), batches(subject, (8, 64, 1_024, 16_384), exact)
    gates = [
        ratio_gate(
            "one row trading3", singles[f"predict_row({kind})"], level, name=f"one row trading3: {kind}"
        )
        for kind in ("list", "array", "mapping")
    ]
    cost = singles["LightGBM's C call"] / singles["predict_row(list)"]
    name = "one row trading3 (list), cost to the C call"
    gates.append(Gate(name, cost, 1.25, at_least=False, unit="× the time of LightGBM's C call"))
    gates += [ratio_gate(f"batch of {size:,}, trading3", many[size]["predict"], level) for size in many]
    gates += explanations(subject) + threads(subject) + loading(path)
    batching(subject.model, rows)
    return [*gates, parity(subject, exact)]


def measure_nyc(folder: Path) -> list[Gate]:
    path, rows, _ = public("NYC_taxi", folder)
    subject = Subject.load("NYC_taxi", path, rows, others=True)
    print(f"\nNYC_taxi: {subject.model.info.n_trees} trees, {rows.shape[1]} features")
    exact = exactness(subject)
    singles, many = one_row(subject, exact), batches(subject, (64, 16_384), exact)
    gates = explanations(subject)
    if "lleaves" in singles and subject.level != "lightgbm":
        ratio = singles["predict_row(list)"] / singles["lleaves"]
        gates.append(
            Gate(
                "NYC_taxi: one row, times lleaves' bound function",
                ratio,
                1.6,
                2.0,
                unit="× as fast as lleaves",
            )
        )
        for size, ratios in many.items():
            name = f"NYC_taxi: batch of {size:,}, times lleaves"
            ratio = ratios["predict"] / ratios["lleaves"]
            binds = subject.level == "avx512"  # the goal was set for this level
            gates.append(Gate(name, ratio, 3.0, 5.0, binds=binds, unit="× as fast as lleaves"))
    return [*gates, parity(subject, exact)]


def measure_rest(folder: Path) -> list[Gate]:
    gates = []
    for name in ("airline", "mtpl2"):
        path, rows, codes = public(name, folder)
        subject = Subject.load(name, path, rows, categories=codes)
        print(f"\n{name}: {subject.model.info.n_trees} trees, {rows.shape[1]} features, categories")
        exact, level = exactness(subject), subject.level
        singles, many = one_row(subject, exact), batches(subject, (1_024,), exact)
        if name == "mtpl2":
            gates.append(ratio_gate("one row mtpl2", singles["predict_row(list)"], level))
        gates.append(ratio_gate(f"batch of 1,024, {name}", many[1_024]["predict"], level))
        gates.append(parity(subject, exact))
    for name, leaves, trees in (("63 leaves", 63, 200), ("255 leaves", 255, 100)):
        path, rows = train_synthetic(folder, leaves=leaves, trees=trees)
        subject = Subject.load(name, path, rows)
        print(f"\n{name}: {subject.model.info.n_trees} trees, {rows.shape[1]} features")
        exact, level = exactness(subject), subject.level
        singles, many = one_row(subject, exact), batches(subject, (1_024,), exact)
        gates.append(ratio_gate(f"one row {name}", singles["predict_row(list)"], level))
        gates.append(ratio_gate(f"batch of 1,024, {name}", many[1_024]["predict"], level))
        gates += [*explanations(subject, gate=name == "63 leaves"), parity(subject, exact)]
    return gates


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    args = parser.parse_args()
    gates: list[Gate] = []
    with tempfile.TemporaryDirectory() as text:
        for measure in (frames,) if args.quick else (measure_trading3, measure_nyc, measure_rest, frames):
            gates += measure(Path(text))
    print(f"\n{'':8}{'gate':<58}{'measured':>9}   must, stretch")
    for gate in gates:
        print(gate)
    return finish(args, [gate.result for gate in gates])


if __name__ == "__main__":
    raise SystemExit(main())
