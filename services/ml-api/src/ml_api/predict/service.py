"""The endpoint of POST /predict: parses the body, decides with the current model, updates metrics, and answers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from ml_api.http.endpoints import require_json
from ml_api.http.limits import run_within
from ml_api.observability.metrics import Metrics
from ml_api.predict.answer import encode_answer
from ml_api.predict.contract import parse_request
from ml_api.trading.contributions import contributions
from ml_api.trading.decision import Decision, Predict, compute_features, decide
from ml_api.trading.indicators import FloatArray, Row
from ml_api.trading.types import ASSETS, CLASSES, Contribution
from predictor import Manifest, Model, ModelSlot

__all__ = ["RULES_VERSION", "PredictionService"]

RULES_VERSION = "rules"
"""The model version in answers if fixed rules decide instead of a model."""

# A larger body is processed in a thread, which for a usual body (half of this) would cost more than it takes.
_INLINE_BYTES = 65_536


class PredictionService:
    """
    Answers POST /predict.

    Args:
        slot: The slot of the model; None: decide by fixed rules.
        version: The version that answers state for the model of the start, instead of its own. A model that is swapped
            in later has its own version.
        cap_orders: Whether orders are limited to the portfolio's cash and positions.
        explain_top: How many SHAP contributions an answer lists per asset; 0: without the member.
        timeout: Seconds for a large body, which is processed in a thread.
        now: Returns the time for `createdAt`.
    """

    def __init__(
        self,
        slot: ModelSlot | None,
        metrics: Metrics,
        *,
        version: str | None = None,
        cap_orders: bool = False,
        explain_top: int = 0,
        timeout: float = 10.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._slot, self._metrics = slot, metrics
        self._version, self._cap_orders, self._now = version, cap_orders, now
        self._start_model = slot.current if slot is not None else None
        self._explain_top, self._timeout = explain_top, timeout
        # Looked up once. It also makes each counter start at zero, so that the first decision counts as an increase.
        self._predictions = {
            (asset, action): metrics.predictions.labels(asset, action)
            for asset in ASSETS
            for action in CLASSES
        }
        self._ranges: tuple[Manifest | None, Sequence[tuple[str, float, float]]] = (None, ())

    @property
    def version(self) -> str:
        """The model version that answers state."""
        return self._name(self._slot.current if self._slot is not None else None)

    async def answer(self, request: Request) -> Response:
        """Answer one HTTP request."""
        require_json(request)
        body = await request.body()
        if len(body) <= _INLINE_BYTES:
            answer = self.decide(body)
        else:
            answer = await run_within(self._timeout, partial(self.decide, body))
        return Response(answer, media_type="application/json")

    def decide(self, body: bytes) -> bytes:
        """
        Return the answer to *body*.

        Raises:
            MalformedBody: A problem, 422 or 400, with the first violation of the schema; without values of the body.
        """
        begun = time.perf_counter()
        request = parse_request(body)
        model = self._slot.current if self._slot is not None else None  # one model for the whole request
        decision = decide(
            compute_features(request.series),
            request.portfolio,
            self._predictor(model) if model is not None else None,
            cap_to_portfolio=self._cap_orders,
        )
        answer = encode_answer(
            decision,
            model_version=self._name(model),
            request_id=request.request_id,
            agent_id=request.agent_id,
            created_at=self._now(),
            contributions=self._contributions(decision, model),
        )
        self._count(decision, model)  # only of answers: a request that fails is sent again
        self._metrics.decision_seconds.observe(time.perf_counter() - begun)
        return answer

    def _contributions(self, decision: Decision, model: Model | None) -> tuple[Contribution, ...] | None:
        if model is None or self._explain_top == 0:
            return None
        return contributions(
            decision.asset_decisions, lambda rows: model.explain(rows).contributions, top=self._explain_top
        )

    def _name(self, model: Model | None) -> str:
        if self._version is not None and model is self._start_model:
            return self._version
        return model.info.version if model is not None else RULES_VERSION

    def _predictor(self, model: Model) -> Predict:
        def predict(rows: list[Row]) -> list[FloatArray]:
            begun = time.perf_counter()
            # Row by row: two such calls cost half of one call for a matrix.
            probabilities = [model.predict_row(row) for row in rows]
            self._metrics.model_seconds.observe(time.perf_counter() - begun)
            return probabilities

        return predict

    def _count(self, decision: Decision, model: Model | None) -> None:
        ranges = self._ranges_of(model.manifest if model is not None else None)
        for decided in decision.asset_decisions:
            self._predictions[decided.asset, decided.action].inc()
            # Not strict, because there are no ranges without a manifest.
            for (feature, least, most), value in zip(ranges, decided.row, strict=False):
                if not least <= value <= most:
                    self._metrics.out_of_range.labels(feature).inc()
        for asset in decision.skipped:
            self._metrics.skipped.labels(asset).inc()

    def _ranges_of(self, manifest: Manifest | None) -> Sequence[tuple[str, float, float]]:
        """Return each feature's name and training range, computed once per manifest; empty without a manifest."""
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
