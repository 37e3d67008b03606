"""
One decision without HTTP and store, part by part, in microseconds of CPU: so that a part that grew slow is seen.
"Another agent" is one whose candles were seen just before, as they are when all agents are asked for at one moment.

    uv run python benchmarks/service/decision.py             # prints the table, about ten seconds
    uv run python benchmarks/service/decision.py --check     # exits 1 where a goal is missed

Beside it `json.loads` of the same body, and the contract's own reading, which the quick one must agree with. The parts
alternate in blocks and the quickest block of each counts, so that other work on the machine hardly shows.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

from bodies import body

from ml_api.observability.metrics import Metrics
from ml_api.predict.contract import PredictResponse, encode_response, parse_request
from ml_api.predict.quick import QuickRequest, projection, read_request
from ml_api.predict.service import Decider
from ml_api.serving.registry import BUNDLED_MODEL
from ml_api.trading.decision import decide
from predictor import Model, ModelSlot

BLOCKS, CALLS = 40, 25
FLOOR, EXACT, WHOLE, AGAIN = "json.loads", "reading, the contract's", "all of it", "all of it, another agent"
WHOLE_RATIO, AGAIN_RATIO = 3 / 4, 1 / 5  # of the contract's reading


def parts() -> dict[str, Callable[[], object]]:
    """Each part of a decision, and what it is held against."""
    content, others = body(), itertools.cycle([body(market) for market in range(1, 257)])
    model = Model.load(BUNDLED_MODEL)
    decider = Decider(ModelSlot(model), Metrics())
    request = read_request(content)
    assert isinstance(request, QuickRequest)
    outlook, portfolio = request.outlook, request.portfolio
    decision = decide(outlook, portfolio, model.predict)
    rows = [verdict.row for verdict in decision.verdicts]
    chances = model.predict(rows)
    answer = PredictResponse(
        model_version=model.info.version,
        request_id=request.request_id,
        agent_id=request.agent_id,
        created_at=datetime.now(UTC),
        orders=decision.orders,
        signals=decision.signals,
        reasoning=decision.reasoning,
    )
    return {
        FLOOR: lambda: json.loads(content),
        EXACT: lambda: parse_request(content),
        "fingerprint": lambda: projection(next(others)),
        "fingerprint, another agent": lambda: projection(content),
        "reading, and what candles say": lambda: read_request(next(others)),
        "model, two rows": lambda: [model.predict_row(row) for row in rows],
        "deciding, but the model": lambda: decide(outlook, portfolio, lambda _: chances),
        "the answer's text": lambda: encode_response(answer),
        WHOLE: lambda: decider.decide(next(others)),
        AGAIN: lambda: decider.decide(content),
    }


def quickest(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Microseconds of CPU a call."""
    gc.disable()  # the service has it look seldom, and never at what was there from the start
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(BLOCKS):
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
    parser.add_argument("--check", action="store_true", help="exit 1 where a goal is missed")
    options = parser.parse_args()
    micros = quickest(parts())
    for name, spent in micros.items():
        print(f"{name:30} {spent:7.1f} us {spent / micros[FLOOR]:6.2f} x json.loads")
    goals = {
        "a decision takes three quarters of the contract's reading": micros[WHOLE]
        <= WHOLE_RATIO * micros[EXACT],
        "one for another agent a fifth of it": micros[AGAIN] <= AGAIN_RATIO * micros[EXACT],
    }
    missed = [goal for goal, met in goals.items() if not met]
    for goal in missed:
        print(f"missed: {goal}")
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
