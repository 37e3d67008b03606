"""The largest contributions of the model towards the chosen action."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import numpy as np
import pytest

from ml_api.predict.contract import parse_request
from ml_api.serving.registry import BUNDLED_MODEL
from ml_api.trading.contributions import contributions
from ml_api.trading.decision import compute_features, decide
from ml_api.trading.indicators import FEATURES
from ml_api.trading.types import CLASSES
from predictor import Model


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load(BUNDLED_MODEL)


def test_contributions_are_the_largest_per_asset_towards_its_action(
    make_body: Callable[..., bytes], model: Model
) -> None:
    request = parse_request(make_body())
    decision = decide(compute_features(request.series), request.portfolio, model.predict)
    shares = model.explain([asset_decision.row for asset_decision in decision.asset_decisions]).contributions
    found = contributions(decision.asset_decisions, lambda rows: model.explain(rows).contributions, top=3)
    assert [one.asset_symbol for one in found] == ["BTC"] * 3 + ["ETH"] * 3
    for index, asset_decision in enumerate(decision.asset_decisions):
        own = [one for one in found if one.asset_symbol == asset_decision.asset]
        sizes = [abs(one.log_odds) for one in own]
        toward = shares[index, CLASSES.index(asset_decision.action)]
        assert sizes == sorted(np.abs(toward), reverse=True)[:3]
        assert all(one.log_odds == toward[FEATURES.index(one.feature)] for one in own)


def test_all_contributions_add_up_to_the_raw_score(make_body: Callable[..., bytes], model: Model) -> None:
    request = parse_request(make_body(assets=["ETH"]))
    decision = decide(compute_features(request.series), request.portfolio, model.predict)
    (asset_decision,) = decision.asset_decisions
    explanation = model.explain([asset_decision.row])
    found = contributions(decision.asset_decisions, lambda rows: model.explain(rows).contributions, top=99)
    column = CLASSES.index(asset_decision.action)
    assert {one.feature for one in found} == set(FEATURES)
    total = explanation.bias[0, column] + sum(one.log_odds for one in found)
    assert total == pytest.approx(explanation.raw[0, column], rel=1e-9)


def test_without_asset_decisions_the_model_is_not_called() -> None:
    assert contributions((), lambda rows: pytest.fail("called"), top=3) == ()


@pytest.mark.anyio
async def test_explain_top_adds_only_the_contributions(
    service: Callable[..., httpx.AsyncClient],
    make_body: Callable[..., bytes],
    headers: Callable[..., dict[str, str]],
) -> None:
    answers = []
    for top in (0, 2):
        async with service(explain_top=top) as client:
            answer = await client.post("/predict", content=make_body(), headers=headers())
        assert answer.status_code == 200
        answers.append(answer.json())
    plain, explained = answers
    assert len(explained.pop("contributions")) == 4
    for decision in answers:
        del decision["createdAt"]
    assert explained == plain
