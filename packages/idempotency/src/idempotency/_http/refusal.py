"""Builds the library's own responses: refusals, in the format of `Policy.render` if it is set."""

from __future__ import annotations

import logging

from idempotency._core.errors import IdempotencyError
from idempotency._core.outcome import Response
from idempotency._core.policy import Policy
from idempotency._core.problem import handler_failed, problem

__all__ = ["first_run_failed", "refusal"]

_log = logging.getLogger("idempotency")


def refusal(error: IdempotencyError, policy: Policy) -> Response:
    """The answer for *error*, rendered by the policy; the problem document if rendering fails."""
    try:
        return problem(error, documentation_url=policy.documentation_url, render=policy.render)
    except Exception as failure:
        _rendering_failed(failure)
        return problem(error, documentation_url=policy.documentation_url)


def first_run_failed(policy: Policy) -> Response:
    """The response recorded for a handler that raised, if the policy keeps exceptions."""
    try:
        return handler_failed(policy.documentation_url, policy.render)
    except Exception as failure:
        _rendering_failed(failure)
        return handler_failed(policy.documentation_url)


def _rendering_failed(failure: Exception) -> None:
    # Without its message, which may contain anything.
    _log.error("Policy.render raised %s: the problem document is sent instead", type(failure).__name__)
