"""
The CPU microseconds of one decision without HTTP and store, part by part, to find a part that became slower.

    uv run python benchmarks/service/decision.py             # prints the table, about ten seconds
    uv run python benchmarks/service/decision.py --check     # exits 1 if the goal is missed

The unit is `json.loads` of the same body. The parts alternate in blocks, and the fastest block of each part counts, so
that other work on the machine has little effect.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from bodies import body

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness.results import Result, add_options, finish

from ml_api.observability.metrics import Metrics
from ml_api.predict.answer import encode_answer
from ml_api.predict.contract import parse_request, projection
from ml_api.predict.service import PredictionService
from ml_api.serving.registry import BUNDLED_MODEL
from ml_api.trading.decision import compute_features, decide
from predictor import Model, ModelSlot

BLOCKS, CALLS = 40, 25
FLOOR, WHOLE = "json.loads", "all of it"
WHOLE_RATIO = 3  # goal: at most this many times the floor


def parts() -> dict[str, Callable[[], object]]:
    """Return each part of a decision, and the floor, as functions."""
    content = body()
    model = Model.load(BUNDLED_MODEL)
    predictions = PredictionService(ModelSlot(model), Metrics())
    request = parse_request(content)
    market = compute_features(request.series)
    decision = decide(market, request.portfolio, model.predict)
    rows = [one.row for one in decision.asset_decisions]
    probabilities = model.predict(rows)
    answer = partial(
        encode_answer,
        decision,
        model_version=model.info.version,
        request_id=request.request_id,
        agent_id=request.agent_id,
        created_at=datetime.now(UTC),
    )
    return {
        FLOOR: lambda: json.loads(content),
        "fingerprint": lambda: projection(content),
        "reading": lambda: parse_request(content),
        "features and signals": lambda: compute_features(request.series),
        "model, two rows": lambda: [model.predict_row(row) for row in rows],
        "deciding, but the model": lambda: decide(market, request.portfolio, lambda _: probabilities),
        "the answer's text": answer,
        WHOLE: lambda: predictions.decide(content),
    }


def fastest_blocks(calls: dict[str, Callable[[], object]], blocks: int) -> dict[str, float]:
    """Return CPU microseconds per call, of the fastest block."""
    gc.disable()  # the service, too, collects rarely, and freezes the objects of its start
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(blocks):
        for name, call in calls.items():
            begun = time.process_time()
            for _ in range(CALLS):
                call()
            best[name] = min(best[name], (time.process_time() - begun) / CALLS * 1e6)
    return best


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    options = parser.parse_args()
    micros = fastest_blocks(parts(), 1 if options.quick else BLOCKS)
    results = []
    for name, spent in micros.items():
        goal = WHOLE_RATIO if name == WHOLE else None
        result = Result(
            name=name, value=spent / micros[FLOOR], unit="× json.loads of the same body", goal=goal
        )
        print(f"{name:30} {spent:7.1f} us {result.value:6.2f} x json.loads  {result.verdict}")
        if name != FLOOR:
            results.append(result)
    return finish(options, results)


if __name__ == "__main__":
    sys.exit(main())
