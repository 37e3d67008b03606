"""
Read by type checkers, never run: drift of rows and answers, from a manifest.

A line with a type error fails without its `ignore`, and a line without one fails with it.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import assert_type

import numpy as np

from predictor import AnswerDrift, DriftMonitor, FeatureDrift, Manifest, Model

manifest = Manifest.read("model.txt.manifest.json")
monitor = DriftMonitor(manifest)
DriftMonitor("model.txt.manifest.json")  # type: ignore[arg-type]

rows = np.zeros((2, 2))
monitor.observe(rows)
monitor.observe(rows, Model.load("model.txt").predict(rows))
monitor.observe(rows, ["yes", "no"])  # type: ignore[arg-type]

assert_type(monitor.report(), tuple[FeatureDrift, ...])
assert_type(monitor.answers(), tuple[AnswerDrift, ...])
for feature in monitor.report():
    assert_type(feature.feature, str)
    assert_type(feature.unseen, int)
    assert_type(feature.psi, float | None)
for answer in monitor.answers():
    assert_type(answer.output, str | int | float | None)
    assert_type(answer.rows, int)
    assert_type(answer.psi, float | None)
    answer.rows = 0  # type: ignore[misc]
