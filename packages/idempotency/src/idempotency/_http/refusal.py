"""Builds the responses that the library sends itself: refusals, in the policy's own format if it has one."""

from __future__ import annotations

import logging

from idempotency._core.errors import IdempotencyError
from idempotency._core.outcome import Response
from idempotency._core.policy import Policy
from idempotency._core.problem import handler_failed, problem

__all__ = ["first_run_failed", "refusal"]

_log = logging.getLogger("idempotency")


def refusal(error: IdempotencyError, policy: Policy) -> Response:
    """The answer for *error*, rendered by the policy; its problem document where that fails."""
    try:
        return problem(error, documentation_url=policy.documentation_url, render=policy.render)
    except Exception as failure:
        _rendering_failed(failure)
        return problem(error, documentation_url=policy.documentation_url)


def first_run_failed(policy: Policy) -> Response:
    """The response recorded for a handler that raised, where the policy keeps exceptions."""
    try:
        return handler_failed(policy.documentation_url, policy.render)
    except Exception as failure:
        _rendering_failed(failure)
        return handler_failed(policy.documentation_url)


def _rendering_failed(failure: Exception) -> None:
    # Not what it says: that may hold anything.
    _log.error("Policy.render raised %s: the problem document is sent in its place", type(failure).__name__)
