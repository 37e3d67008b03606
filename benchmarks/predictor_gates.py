"""The goals of the native kernel, as ratios to another engine in the same run; a must goal and a stretch goal each."""

from __future__ import annotations

from dataclasses import dataclass

from harness.results import Result

__all__ = ["Gate", "ratio_gate"]

# The goals (must, stretch) of each level. A level that is not listed is compared with the goal of "avx512".
GOALS: dict[str, dict[str, tuple[float, float]]] = {
    "one row trading3": {"avx512": (20, 30), "avx2": (20, 30), "generic": (15, 22)},
    "one row 63 leaves": {"avx512": (10, 15)},
    "one row mtpl2": {"avx512": (30, 50)},
    "one row 255 leaves": {"avx512": (4, 8)},
    "batch of 8, trading3": {"avx512": (9, 13)},
    "batch of 64, trading3": {"avx512": (25, 32)},
    "batch of 1,024, trading3": {"avx512": (40, 58), "avx2": (16, 22), "generic": (12, 17)},
    "batch of 16,384, trading3": {"avx512": (40, 58), "avx2": (16, 22), "generic": (12, 17)},
    "batch of 1,024, 63 leaves": {"avx512": (24, 36)},
    "batch of 1,024, airline": {"avx512": (16, 24)},
    "batch of 1,024, mtpl2": {"avx512": (30, 45)},
    "batch of 1,024, 255 leaves": {"avx512": (11, 16)},
    "SHAP trading3": {"avx512": (10, 16), "avx2": (8, 13)},
    "SHAP NYC_taxi": {"avx512": (6, 8.5)},
    "SHAP 63 leaves": {"avx512": (12, 19)},
}
# Goals without the kernel, where LightGBM computes: one row is faster, because it skips LightGBM's Python layer.
WITHOUT_KERNEL = {"one row mtpl2": 1.0, "one row": 2.0, "batch": 0.9, "SHAP": 0.8}


@dataclass(frozen=True)
class Gate:
    """A measured value, the goal that it must reach, and the goal that it should reach."""

    name: str
    value: float
    must: float
    stretch: float | None = None
    at_least: bool = True  # False: the goals are maxima
    binds: bool = True  # False: the goal is for another level, and only shown for comparison
    unit: str = "× as fast as Booster.predict"

    @property
    def result(self) -> Result:
        """The gate as a result for `scripts/bench`."""
        return Result(
            name=self.name,
            value=self.value,
            unit=self.unit,
            goal=self.must,
            at_least=self.at_least,
            binds=self.binds,
        )

    def _reaches(self, bound: float) -> bool:
        return self.value >= bound if self.at_least else self.value <= bound

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        if self.stretch is not None and self._reaches(self.stretch):
            verdict = "stretch"
        elif self._reaches(self.must):
            verdict = "ok"
        else:
            verdict = "MISS" if self.binds else "below"
        goals = f"{sign} {self.must:g}" + (f", {self.stretch:g}" if self.stretch is not None else "")
        return (
            f"{verdict:<8}{self.name:<58}{self.value:9.3g}   {goals}{'' if self.binds else '   (for avx512)'}"
        )


def ratio_gate(goal: str, value: float, level: str, *, name: str = "") -> Gate:
    """
    Return the gate *goal* for the *level* that runs here; `lightgbm` means no kernel.

    Goals that were set only for AVX-512 are shown on lower levels too, but bind only on AVX-512.
    """
    if level == "lightgbm":
        least = next(bound for kind, bound in WITHOUT_KERNEL.items() if goal.startswith(kind))
        return Gate(name or goal, value, least)
    own = GOALS[goal]
    must, stretch = own.get(level, own["avx512"])
    return Gate(name or goal, value, must, stretch, binds=level in own)
