"""
The decision on one body, with the model that is current: parse, decide, encode, and count what the model saw.

Synchronous, a fraction of a millisecond, and so run in the event loop: a thread would cost more than it frees.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from ml_api.http.problems import Problem
from ml_api.observability.metrics import Metrics
from ml_api.predict.answer import Answer, encode_answer
from ml_api.predict.contract import MalformedBody, parse_request
from ml_api.trading.contributions import contributions
from ml_api.trading.decision import Decision, Predict, compute_features, decide
from ml_api.trading.indicators import FloatArray, Row
from ml_api.trading.types import ASSETS, CLASSES, Contribution
from predictor import Manifest, Model, ModelSlot

__all__ = ["RULES_VERSION", "PredictionService"]

RULES_VERSION = "rules"
"""What answers call the model while the fixed rules stand in for one."""


class PredictionService:
    """
    Turns the body of POST /predict into its answer.

    Args:
        slot: Where the model is; None decides by the fixed rules.
        version: What answers call the model that is there at the start, instead of its own version; one that is
            swapped in later has its own.
        cap_orders: Whether orders are cut to the portfolio's cash and positions.
        explain_top: How many of the model's own contributions an answer lists per asset; 0 leaves the member out.
        now: The clock of `createdAt`.
    """

    def __init__(
        self,
        slot: ModelSlot | None,
        metrics: Metrics,
        *,
        version: str | None = None,
        cap_orders: bool = False,
        explain_top: int = 0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._slot, self._metrics = slot, metrics
        self._version, self._cap_orders, self._now = version, cap_orders, now
        self._first = slot.current if slot is not None else None
        self._explain_top = explain_top
        # Looked up once; and counted from zero, so that the first of a kind is an increase.
        self._predictions = {
            (asset, action): metrics.predictions.labels(asset, action)
            for asset in ASSETS
            for action in CLASSES
        }
        self._ranges: tuple[Manifest | None, Sequence[tuple[str, float, float]]] = (None, ())

    @property
    def version(self) -> str:
        """The model's version as answers state it."""
        return self._name(self._slot.current if self._slot is not None else None)

    def decide(self, body: bytes) -> bytes:
        """
        Answer one request.

        Raises:
            Problem: 422 with the schema's violations, or 400 for a body nested too deep; neither echoes any
                of it.
        """
        begun = time.perf_counter()
        try:
            request = parse_request(body)
        except MalformedBody as error:
            raise Problem(error.status, error.slug, error.errors) from None
        model = self._slot.current if self._slot is not None else None  # one model for the whole request
        decision = decide(
            compute_features(request.series),
            request.portfolio,
            self._predictor(model) if model is not None else None,
            cap_to_portfolio=self._cap_orders,
        )
        answer = encode_answer(
            Answer(
                model_version=self._name(model),
                request_id=request.request_id,
                agent_id=request.agent_id,
                created_at=self._now(),
                orders=decision.orders,
                signals=decision.signals,
                reasoning=decision.reasoning,
                contributions=self._contributions(decision, model),
            )
        )
        self._count(decision, model)
        self._metrics.decision_seconds.observe(time.perf_counter() - begun)
        return answer

    def _contributions(self, decision: Decision, model: Model | None) -> tuple[Contribution, ...] | None:
        if model is None or self._explain_top == 0:
            return None
        return contributions(
            decision.asset_decisions, lambda rows: model.explain(rows).contributions, top=self._explain_top
        )

    def _name(self, model: Model | None) -> str:
        if self._version is not None and model is self._first:
            return self._version
        return model.info.version if model is not None else RULES_VERSION

    def _predictor(self, model: Model) -> Predict:
        def predict(rows: list[Row]) -> list[FloatArray]:
            begun = time.perf_counter()
            # One row and then the other: two of these calls cost half of one for a matrix.
            chances = [model.predict_row(row) for row in rows]
            self._metrics.model_seconds.observe(time.perf_counter() - begun)
            return chances

        return predict

    def _count(self, decision: Decision, model: Model | None) -> None:
        ranges = self._ranges_of(model.manifest if model is not None else None)
        for one in decision.asset_decisions:
            self._predictions[one.asset, one.action].inc()
            for (feature, least, most), value in zip(ranges, one.row, strict=False):
                if not least <= value <= most:
                    self._metrics.out_of_range.labels(feature).inc()
        for asset in decision.skipped:
            self._metrics.skipped.labels(asset).inc()

    def _ranges_of(self, manifest: Manifest | None) -> Sequence[tuple[str, float, float]]:
        """Each feature's name and range in training, made once for each manifest; empty without one."""
        if manifest is not self._ranges[0]:
            features = manifest.features if manifest is not None else ()
            ranges = [
                (
                    feature.name,
                    feature.min if feature.min is not None else -math.inf,
                    feature.max if feature.max is not None else math.inf,
                )
                for feature in features
            ]
            self._ranges = manifest, ranges
        return self._ranges[1]
