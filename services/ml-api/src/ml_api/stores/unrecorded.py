"""
Answers 503 instead of a response that the store could not record; the caller may retry.

The idempotency middleware sends an answer also if it could not be recorded, because the caller must learn about an
effect that may have happened. A decision has no effect, so here it is better to refuse.
"""

from __future__ import annotations

from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from idempotency.events import Event, StoreFailed
from ml_api.http.problems import problem_response

__all__ = ["RefuseUnrecorded", "note_unrecorded"]


_failures: ContextVar[list[StoreFailed]] = ContextVar("ml_api.unrecorded")  # of the request being answered


def note_unrecorded(event: Event) -> None:
    """A hook of the idempotency middleware: remember that the answer of the current request was not recorded."""
    if isinstance(event, StoreFailed) and (event.step, event.action) == ("complete", "unrecorded"):
        _failures.get([]).append(event)


class RefuseUnrecorded:
    """
    Answers 503 instead of a 2xx that was not recorded. Place it outside the idempotency middleware.

    The claim stays until its lease is over. A retry waits for that, decides again, and is recorded then.
    """

    def __init__(self, app: ASGIApp, *, retry_after: float) -> None:
        self.app = app
        self._retry_after = str(max(1, round(retry_after)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failures: list[StoreFailed] = []
        token, refused = _failures.set(failures), False

        async def send_if_recorded(message: Message) -> None:
            nonlocal refused
            if refused:
                return
            if message["type"] == "http.response.start" and failures and message["status"] < 300:
                refused = True
                detail = (
                    "The answer could not be recorded, so a retry would not get the same answer; nothing was done. "
                    "Send the request again with the same Idempotency-Key"
                )
                refusal = problem_response(
                    503, "answer-not-recorded", detail, {"Retry-After": self._retry_after}
                )
                await refusal(scope, receive, send)
                return
            await send(message)

        try:
            await self.app(scope, receive, send_if_recorded)
        finally:
            _failures.reset(token)
