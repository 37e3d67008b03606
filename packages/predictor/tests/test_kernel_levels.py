"""The instruction levels that the kernel finds on a processor, and the choice among them."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from predictor import _engine

_kernel = pytest.importorskip("predictor._kernel", reason="the extension is not built")
LEVELS = _kernel.levels()
# What native/level_avx2.c and level_avx512.c are compiled for, by the names of Linux.
INSTRUCTIONS = {
    "avx512": {
        "avx512f",
        "avx512bw",
        "avx512cd",
        "avx512dq",
        "avx512vl",
        "avx2",
        "bmi1",
        "bmi2",
        "abm",
        "popcnt",
    },
    "avx2": {"avx2", "bmi1", "bmi2", "abm", "popcnt"},
    "generic": set(),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo")
def test_levels_match_the_flags_in_proc_cpuinfo():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    listed = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    assert tuple(level for level, needed in INSTRUCTIONS.items() if needed <= listed) == LEVELS


def test_predictor_engine_variable_selects_the_level_or_lightgbm(trained, monkeypatch):
    subject = trained("binary")
    for level in LEVELS:
        monkeypatch.setenv("PREDICTOR_ENGINE", level)
        assert subject.load().info.engine == f"native kernel ({level})"
    monkeypatch.setenv("PREDICTOR_ENGINE", "lightgbm")
    model = subject.load()
    assert (model.info.engine[:8], model.info.engine_reason[:12]) == ("LightGBM", "switched_off")
    assert model._schema.cells is None
    monkeypatch.setenv("PREDICTOR_ENGINE", "fast")
    with pytest.raises(_engine.EngineUnavailable, match="must be lightgbm, avx512, avx2, generic"):
        subject.load()


def test_an_unavailable_level_falls_back_to_lightgbm(trained, monkeypatch):
    monkeypatch.setattr(_kernel, "levels", lambda: ("generic",))
    monkeypatch.setenv("PREDICTOR_ENGINE", "avx512")
    info = trained("binary").load().info
    assert info.engine.startswith("LightGBM")
    assert info.engine_reason.startswith("level_not_here: ")


@pytest.mark.parametrize("best", range(len(LEVELS)))
def test_the_best_available_level_is_used_by_default(best, trained, monkeypatch):
    monkeypatch.delenv("PREDICTOR_ENGINE", raising=False)
    monkeypatch.setattr(_kernel, "levels", lambda: LEVELS[best:])
    assert trained("binary").load().info.engine == f"native kernel ({LEVELS[best]})"


NOT_EXACT = r"""
#include <stdio.h>
int main(void) {
    volatile double nan = 0.0 / 0.0, smallest = 5e-324, large = 1e16, one = 1.0;
    double x = nan, sum = large + one - large;
    if (x == x) puts("NaN is a number");
    if (smallest * one == 0.0) puts("subnormal numbers are zero");
    if (sum != 0.0) puts("sums have another order");
    return 0;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(
    "flag", ["-ffast-math", "-Ofast", "-ffinite-math-only", "-funsafe-math-optimizations"]
)
def test_compiler_flags_of_the_environment_do_not_change_arithmetic(flag, tmp_path, monkeypatch):
    # setuptools puts CFLAGS before the extension's own flags.
    stub = SimpleNamespace(
        Extension=lambda _name, **options: SimpleNamespace(**options), setup=lambda **_: None
    )
    monkeypatch.setitem(sys.modules, "setuptools", stub)
    kernel = runpy.run_path(str(Path(__file__).parents[1] / "setup.py"))["kernel"]
    source, compiled, program = tmp_path / "exact.c", tmp_path / "exact.o", tmp_path / "exact"
    source.write_text(NOT_EXACT)
    subprocess.run(["cc", flag, "-c", source, "-o", compiled, *kernel.extra_compile_args], check=True)
    subprocess.run(["cc", flag, compiled, "-o", program, *kernel.extra_link_args], check=True)
    assert subprocess.run([program], check=True, capture_output=True, text=True).stdout == ""
