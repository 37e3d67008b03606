"""
An answer that the store could not record is not sent as if it were: the caller is told 503 and may repeat.

The idempotency middleware sends an answer whose record failed, since an effect may have happened that the caller must
learn of. A decision has no effect, so here it is better to say that the promise was not kept.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from idempotency.events import Event, StoreFailed
from ml_api.http.problems import problem_response

__all__ = ["RefuseUnrecorded", "note_unrecorded"]


@dataclass(slots=True)
class _Request:
    unrecorded: bool = False


_request: ContextVar[_Request] = ContextVar("ml_api.unrecorded")


def note_unrecorded(event: Event) -> None:
    """Remember for the request that is being answered that its answer was not recorded; a hook of the middleware."""
    if isinstance(event, StoreFailed) and (event.step, event.action) == ("complete", "unrecorded"):
        request = _request.get(None)
        if request is not None:
            request.unrecorded = True


class RefuseUnrecorded:
    """
    Answers 503 instead of a 2xx that was not recorded. It belongs outside the idempotency middleware.

    The claim stays until its lease is over; a repeat waits for that, decides again and is recorded then.
    """

    def __init__(self, app: ASGIApp, *, retry_after: float) -> None:
        self.app = app
        self._retry_after = str(max(1, round(retry_after)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Watch the answers to HTTP requests; pass everything else."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request, refused = _Request(), False
        token = _request.set(request)

        async def send_if_recorded(message: Message) -> None:
            nonlocal refused
            if refused:
                return
            if message["type"] == "http.response.start" and request.unrecorded and message["status"] < 300:
                refused = True
                detail = (
                    "The answer could not be recorded, so a repeat could not have been answered alike; nothing was "
                    "done. Send the request again with the same Idempotency-Key"
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
            _request.reset(token)
