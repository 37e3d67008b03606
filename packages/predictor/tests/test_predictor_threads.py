"""Predictions in many threads and in forked and spawned processes; a crash of a child process fails its test."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pytest

from predictor import ModelSlot, RowPolicy, available_cpus
from predictor._engine import Kernel, make_kernel
from predictor._features import features_of
from predictor._model_file import parse_model_text
from predictor.schema import RowSchema

LINUX = sys.platform == "linux"


def run(script: str, *arguments: object, timeout: float = 60.0) -> str:
    """Run *script* in a fresh interpreter, so that a crash or a hang fails one test and not the whole run."""
    child = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore:This process:DeprecationWarning",
            "-c",
            script,
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert child.returncode == 0, f"exit {child.returncode}: {child.stderr[-2000:]}"
    return child.stdout.strip()


def test_an_answer_of_many_classes_is_written_where_no_other_thread_writes(monkeypatch):
    """NumPy releases the GIL while it copies more than 500 numbers, so another row may be answered in the middle."""
    monkeypatch.delenv("PREDICTOR_ENGINE", raising=False)
    pytest.importorskip("predictor._kernel", reason="the extension is not built")
    x = np.arange(1_200.0)[:, None]
    booster = lgb.train(
        {"objective": "multiclass", "num_class": 300, "min_data_in_leaf": 1, "num_threads": 1, "verbose": -1},
        lgb.Dataset(x, x[:, 0] // 4),
        1,
    )
    kernel = make_kernel(parse_model_text(booster.model_to_string().encode()))
    assert isinstance(kernel, Kernel)
    expected = booster.predict(x, num_threads=1)

    class Interrupted(np.ndarray):
        def copy(self) -> np.ndarray:  # type: ignore[override]
            nonlocal waiting
            if waiting:
                waiting = False
                kernel.encoded_row([900.0])
            return np.array(self)

    template = np.zeros(300).view(Interrupted)
    cells = RowSchema(
        features_of(parse_model_text(booster.model_to_string().encode()).summary), RowPolicy()
    ).cells
    kernel._engine.bind(cells, template, np.empty, 1, 0)
    for row in (5, 700):
        waiting = True
        assert kernel.plain_row([float(row)]).tolist() == expected[row].tolist()
        assert not waiting


def test_every_thread_gets_its_own_rows_answer(trained):
    model, rows = trained("multiclass").load(), trained("multiclass").rows
    expected, contributions = model.predict(rows), model.explain(rows[:50]).contributions
    barrier = threading.Barrier(8)

    def hammer(seed: int) -> int:
        order = np.random.default_rng(seed).permutation(len(rows))
        barrier.wait()
        wrong = 0
        for index in order:
            wrong += bool((model.predict_row(rows[index]) != expected[index]).any())
            if index % 10 == 0:
                wrong += bool((model.predict(rows[index : index + 70]) != expected[index : index + 70]).any())
            if index < 50:
                wrong += bool(
                    (model.explain(rows[index : index + 1]).contributions != contributions[index]).any()
                )
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(hammer, range(8))) == [0] * 8


def test_every_answer_comes_from_one_model_while_the_slot_changes_models(trained):
    """Rows, batches and contributions are compared bit for bit with those of the model that the slot returned."""
    files, rows = ("multiclass", "categories_missing"), trained("multiclass").rows[:120]
    models = [trained(name).load() for name in files]
    truth = [(model.predict(rows), model.explain(rows[:9]).contributions) for model in models]
    slot, stop, barrier = ModelSlot(models[0]), threading.Event(), threading.Barrier(7)

    def ask(seed: int) -> int:
        wrong, rng = 0, np.random.default_rng(seed)
        barrier.wait()
        for step in range(150):
            model = slot.current
            answers, shares = truth[models.index(model)]
            at, size = int(rng.integers(100)), int(rng.integers(1, 20))
            wrong += bool((model.predict_row(rows[at]) != answers[at]).any())
            wrong += bool((model.predict(rows[at : at + size]) != answers[at : at + size]).any())
            if step % 10 == 0:
                wrong += bool((model.explain(rows[:9]).contributions != shares).any())
        return wrong

    def exchange() -> None:
        barrier.wait()
        turn = 0
        while not stop.is_set():
            turn += 1
            slot.adopt(models[turn % 2])
            stop.wait(0.001)  # lets the other threads have the GIL

    with ThreadPoolExecutor(7) as pool:
        asked = [pool.submit(ask, seed) for seed in range(6)]
        changing = pool.submit(exchange)
        try:
            assert [call.result() for call in asked] == [0] * 6
        finally:
            stop.set()
        changing.result()


NO_TEAM = """
import os, sys
import numpy as np
def threads(): return len(os.listdir("/proc/self/task"))
before = threads()
from predictor import Model
model = Model.load(sys.argv[1])
rows = np.zeros((5000, 5))
model.predict(rows); model.leaves(rows); model.explain(rows[:5]); model.predict_row(rows[0])
print(threads() - before)
"""


@pytest.mark.skipif(not LINUX, reason="counts threads in /proc")
def test_predictions_start_no_threads(trained):
    """OpenMP threads in the parent hang forked children, and a change of their number crashes other threads."""
    assert run(NO_TEAM, trained("multiclass").path) == "0"


FORK = """
import os, sys, threading, time
import numpy as np
from predictor import Model
model = Model.load(sys.argv[1], threads=2)
model._runtime.threads, model._runtime.split_above, model._plain_matrix = 2, 1_000, None
rows = np.random.default_rng(0).normal(size=(4000, 5))
expected = model.predict(rows)
stop = threading.Event()
def busy():
    while not stop.is_set():
        model.predict(rows)
threads = [threading.Thread(target=busy) for _ in range(3)]
[t.start() for t in threads]
try:
    for _ in range(12):
        child = os.fork()
        if child == 0:
            same = bool((model.predict(rows) == expected).all())
            same &= bool((model.predict_row(rows[0]) == expected[0]).all())
            same &= bool((Model.load(sys.argv[1]).predict(rows) == expected).all())
            os._exit(0 if same else 7)
        deadline = time.monotonic() + 20
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done: break
            if time.monotonic() > deadline:
                os.kill(child, 9); os.waitpid(child, 0)
                raise SystemExit("a forked child hung")
            time.sleep(0.002)
        if status: raise SystemExit(f"a forked child ended with {status}")
finally:
    stop.set(); [t.join() for t in threads]
print("ok")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_predicts_and_loads_while_the_parent_is_busy(trained):
    assert run(FORK, trained("multiclass").path) == "ok"


FORK_AFTER_LIGHTGBM = """
import os, sys, time
import numpy as np, lightgbm as lgb
from predictor import Model
rows = np.random.default_rng(0).normal(size=(2000, 5))
theirs = lgb.Booster(model_file=sys.argv[1])
theirs.predict(rows, num_threads=2)   # an OpenMP team now exists in the parent
model = Model.load(sys.argv[1])
expected = model.predict(rows)
child = os.fork()
if child == 0:
    os._exit(0 if (model.predict(rows) == expected).all() and Model.load(sys.argv[1]).info.n_trees else 7)
for _ in range(5000):
    done, status = os.waitpid(child, os.WNOHANG)
    if done: print("ok" if status == 0 else status); break
    time.sleep(0.002)
else:
    os.kill(child, 9); print("hung")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_predicts_after_lightgbm_started_openmp_threads(trained):
    assert run(FORK_AFTER_LIGHTGBM, trained("multiclass").path) == "ok"


FORK_DURING_A_SWAP = """
import os, signal, sys, threading
import numpy as np
import predictor.arrow
from predictor import DriftMonitor, Manifest, Model, ModelSlot, manifest_path

path, inside, go_on = sys.argv[1], threading.Semaphore(0), threading.Event()
slot, rows = ModelSlot(Model.load(path)), np.zeros((3, 5))
monitor = DriftMonitor(slot.current.manifest)
scorer = predictor.arrow.Scorer(path)
parent, load = os.getpid(), Model.load


def slow_load(*args, **options):
    if os.getpid() == parent:
        inside.release()
        go_on.wait()
    return load(*args, **options)


class SlowCounts(list):
    def __setitem__(self, index, value):
        if os.getpid() == parent:
            inside.release()
            go_on.wait()
        super().__setitem__(index, value)


def score():
    predictor.arrow._load(path, scorer.sha256)


Model.load = slow_load
predictor.arrow._load_once.cache_clear()
monitor._bins = SlowCounts(monitor._bins)
calls = (lambda: slot.swap(path), score, lambda: monitor.observe(rows))
threads = [threading.Thread(target=call) for call in calls]
for thread in threads:
    thread.start()
    inside.acquire()  # now this thread holds its lock
child = os.fork()
if child == 0:
    signal.alarm(20)  # ends a child that hangs
    for call in calls:
        call()
    os._exit(0)
status = os.waitpid(child, 0)[1]
go_on.set()
for thread in threads:
    thread.join()
print("ok" if status == 0 else f"the child ended with {status}")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_child_forked_while_threads_hold_locks_can_swap_score_and_count(trained):
    assert run(FORK_DURING_A_SWAP, trained("multiclass").path) == "ok"


SPAWN = """
import multiprocessing, sys
import numpy as np
from predictor import Model

def work(path):
    return Model.load(path).predict(np.zeros((3, 5))).tolist()

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        answers = pool.map(work, [sys.argv[1]] * 4)
    assert all(answer == work(sys.argv[1]) for answer in answers)
    print("ok")
"""


def test_spawned_workers_load_for_themselves(trained, tmp_path):
    script = tmp_path / "spawn.py"
    script.write_text(SPAWN)
    child = subprocess.run(
        [sys.executable, script, trained("multiclass").path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.stdout.strip() == "ok", child.stderr[-2000:]


LEAK = """
import gc, sys
import psutil
from predictor import Model
process = psutil.Process()
data, row = open(sys.argv[1], "rb").read(), [0.0] * 5
manifest = Model.load(sys.argv[1]).manifest
def cycle(times):
    for _ in range(times):
        model = Model.from_bytes(data, manifest=manifest)
        for _ in range(20): model.predict_row(row)
        model.explain([row])
    gc.collect()
    return process.memory_info().rss
cycle(60)
before = cycle(60)
print(cycle(240) - before)
"""


def test_loading_and_predicting_leak_no_memory(trained):
    assert int(run(LEAK, trained("multiclass").path)) < 4 << 20


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_the_cgroup_quota_limits_threads(tmp_path: Path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    host = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert available_cpus(cgroup=tmp_path) == (host if expected is None else min(host, expected))


def test_a_model_never_uses_more_threads_than_there_are_processors(trained):
    assert trained("binary").load(threads=1_000).threads == available_cpus()
