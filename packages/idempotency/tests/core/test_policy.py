"""Policies: presets, invalid options, and which responses are kept; errors and delays."""

from __future__ import annotations

import copy
import pickle
from datetime import timedelta
from typing import Any

import pytest

from idempotency import IdempotencyError, Policy, always, successes, unless_transient
from idempotency._core import errors as error_module
from idempotency._core.delays import poll_delay, renew_interval, retry_after
from idempotency._core.protocol import settle


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_transient_statuses_free_the_key_by_default(status: int) -> None:
    assert settle(status, policy=Policy()) == "release"


@pytest.mark.parametrize("status", [200, 201, 204, 302, 400, 402, 404, 409, 410, 422, 501])
def test_final_statuses_are_kept_by_default(status: int) -> None:
    assert settle(status, policy=Policy()) == "keep"


@pytest.mark.parametrize("status", [401, 403, 405])
def test_401_403_and_405_free_the_key_unless_everything_is_kept(status: int) -> None:
    assert unless_transient(status)
    assert settle(status, policy=Policy()) == "release"
    assert settle(status, policy=Policy(keep=always)) == "keep"


@pytest.mark.parametrize("status", [200, 400, 404, 422])
@pytest.mark.parametrize("policy", [Policy(), Policy(keep=always)])
def test_an_answer_before_the_handler_frees_the_key_under_every_policy(status: int, policy: Policy) -> None:
    assert settle(status, policy=policy, handled=False) == "release"


@pytest.mark.parametrize("status", [200, 400, 404, 422])
def test_input_that_the_framework_refused_frees_the_key_unless_everything_is_kept(status: int) -> None:
    assert settle(status, policy=Policy(), accepted=False) == "release"
    assert settle(status, policy=Policy(keep=always), accepted=False) == "keep"


def test_404_frees_the_key_if_no_route_matched() -> None:
    assert settle(404, policy=Policy(), routed=False) == "release"
    assert settle(404, policy=Policy(keep=always), routed=False) == "keep"


def test_successes_keeps_2xx_only() -> None:
    assert [status for status in range(100, 600) if successes(status)] == list(range(200, 300))


def test_at_most_once_keeps_everything_and_never_takes_over() -> None:
    policy = Policy.at_most_once(retention=60.0)
    assert (policy.keep, policy.on_exception, policy.takeover, policy.retention) == (
        always,
        "keep",
        False,
        60.0,
    )
    assert policy.promise == "at most once"
    assert Policy.at_least_once() == Policy()
    assert Policy().promise == "at least once"


@pytest.mark.parametrize(
    "weaker",
    [{"takeover": True}, {"keep": successes}, {"on_exception": "release"}, {"on_store_error": "bypass"}],
)
def test_promise_is_at_least_once_if_one_setting_allows_a_second_run(
    weaker: dict[str, Any],
) -> None:
    assert Policy.at_most_once(**weaker).promise == "at least once"


async def coroutine_function(_: Any) -> Any:
    """Not accepted as an option: policies take plain functions."""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"methods": frozenset({"post"})}, "methods must be a set of names in upper case"),
        ({"methods": "POST"}, "methods must be a set of names in upper case"),
        ({"drop_headers": frozenset({"set-cookie"})}, "drop_headers must be bytes"),
        ({"drop_headers": frozenset({b"Set-Cookie"})}, "drop_headers must be bytes in lower case"),
        ({"keep": {200, 201}}, "keep must be a plain function"),
        ({"keep": coroutine_function}, "keep must be a plain function"),
        ({"fingerprint": coroutine_function}, "fingerprint must be a plain function"),
        ({"redact": coroutine_function}, "redact must be a plain function"),
        ({"replay_header": "Replayed: yes"}, "replay_header must be the name of a header"),
        ({"documentation_url": "https://example.org/a>b"}, "documentation_url must be a URI"),
        ({"documentation_url": "https://example.org/\r\nx: y"}, "documentation_url must be a URI"),
    ],
)
def test_policy_refuses_options_of_the_wrong_type_or_form(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(**wrong)


def test_wire_presets_set_their_options_and_can_be_overridden() -> None:
    draft = Policy.draft_07(strict_keys=False)
    assert (draft.required, draft.strict_keys) == (True, False)
    stripe = Policy.stripe_v1()
    assert (stripe.replay_header, stripe.methods, stripe.keep) == ("Idempotent-Replayed", {"POST"}, always)


def test_policy_error_names_every_invalid_option() -> None:
    with pytest.raises(ValueError, match="must be") as refused:
        Policy(lease=0, retention=-1, wait=-1, methods=frozenset(), on_exception="retry")  # type: ignore[arg-type]
    for name in ("lease", "retention", "wait", "methods", "on_exception"):
        assert name in str(refused.value)


@pytest.mark.parametrize("name", ["lease", "retention"])
@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), timedelta.max.total_seconds()])
def test_a_lease_or_retention_that_no_store_can_keep_is_refused(name: str, seconds: float) -> None:
    """Otherwise every request would fail, in some stores only after its handler has run."""
    with pytest.raises(ValueError, match=name):
        Policy(**{name: seconds})  # type: ignore[arg-type]


@pytest.mark.rule("E10")
def test_errors_survive_pickle_and_copy() -> None:
    samples: list[IdempotencyError] = [
        error_module.InProgress(key_id="0123", retry_after=3),
        error_module.FingerprintMismatch(key_id="0123"),
        error_module.OutcomeUnknown(key_id="0123"),
        error_module.NotReplayable(key_id="0123", reason="streamed"),
        error_module.RequestTooLarge(limit=7),
        error_module.RequestTimeout(seconds=3),
        error_module.MissingKey(),
        error_module.InvalidKey("why"),
        error_module.StoreUnavailable("gone"),
    ]
    for error in samples:
        for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
            assert type(copied) is type(error)
            assert (str(copied), vars(copied)) == (str(error), vars(error))


def test_every_error_has_a_unique_slug_and_a_known_status() -> None:
    public = [cls for name in error_module.__all__ if isinstance(cls := getattr(error_module, name), type)]
    classes = [cls for cls in public if issubclass(cls, error_module.IdempotencyError)]
    # `Answered` ends a handler, and is not an error.
    assert [cls.__name__ for cls in public if cls not in classes] == ["Answered"]
    assert len({cls.slug for cls in classes}) == len(classes)
    assert {cls.status for cls in classes} <= {400, 408, 409, 411, 413, 422, 500, 503}


def test_delays_stay_within_their_bounds() -> None:
    for polls in range(80):
        for chance in (0.0, 0.5, 0.999):
            assert 0.01 <= poll_delay(polls, chance) <= 1.0
            assert 0.01 <= poll_delay(polls, chance, lease_left=0.0) <= 0.03
    assert poll_delay(3, 0.0) < poll_delay(3, 0.9)
    assert renew_interval(30.0) == 10.0
    assert [retry_after(left, 0.99) for left in (0.0, 0.5, 1.5, 2.5, 60.0)] == [1, 1, 2, 3, 4]
