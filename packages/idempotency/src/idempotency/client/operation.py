"""
What a logical call may do, whichever library sends it: which methods are keyed, under which key, and to which origins.

No I/O. A redirect makes a new request of the library's; `Operation` is what joins it to the call that it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Final
from weakref import ref

from idempotency._core.headers import is_token
from idempotency.client.attempts import Attempts
from idempotency.client.keys import quote_key
from idempotency.client.origins import SAFE_HEADERS, Origin, is_allowed, read_origins
from idempotency.client.retry import Retry

__all__ = ["METHODS", "Operation", "Rules"]

METHODS: Final = frozenset({"POST", "PATCH"})


class Operation:
    """
    One logical call: the origin that it was made for, its key, and its deadline.

    Attributes:
        key: As the header carries it; kept for libraries that forget it at a redirect.
    """

    def __init__(self, request: Any, origin: Origin, key: str, attempts: Attempts) -> None:
        self._request = ref(request)
        self.origin = origin
        self.key = key
        self.attempts = attempts

    def began_with(self, request: Any) -> bool:
        """Whether *request* is the object that the call began with: sent again by its caller, it is no redirect."""
        return self._request() is request


class Rules:
    """
    The settings that all clients share.

    Raises:
        ValueError: *trusted_origins* holds what is no origin, or *header* is no name of a header.
        TypeError: *trusted_origins* is a single text.
    """

    def __init__(
        self,
        *,
        methods: Collection[str],
        retry: Retry,
        new_key: Callable[[], str],
        trusted_origins: Collection[str],
        header: str,
    ) -> None:
        if not is_token(header):
            raise ValueError("header must be the name of a header, such as Idempotency-Key")
        self.header = header
        self.retry = retry
        self._methods = frozenset(method.upper() for method in methods)
        self._new_key = new_key
        self._trusted = read_origins(trusted_origins)

    def covers(self, method: str | None) -> bool:
        """Whether a request by *method* is keyed and retried."""
        return method in self._methods

    def begin(self, request: Any, origin: Origin, *, given: str | None, now: float) -> Operation:
        """
        A new call.

        Args:
            request: The library's object; it is referred to weakly.
            given: The key that the caller set, as the header carries it.
        Raises:
            ValueError: `new_key` gave what no header can carry.
        """
        key = quote_key(self._new_key()) if given is None else given
        return Operation(request, origin, key, Attempts(self.retry, began=now))

    def may_go_to(self, operation: Operation, origin: Origin) -> bool:
        """Whether the call's key, credentials and body may be sent to *origin*."""
        return is_allowed(operation.origin, origin, self._trusted)

    def refusal(self, method: str | None, origin: Origin) -> str | None:
        """
        Why a redirect to *origin*, which the call may not go to, is refused; None where it may be followed without
        whatever was meant for the first origin.
        """
        if method in {"GET", "HEAD"}:
            return None
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        return (
            f"a redirect would send this {method}, its {self.header} and its body to {origin.scheme}://{host}, another "
            "origin than it was made for; nothing was sent. Send it there yourself, or name that origin in "
            "trusted_origins"
        )

    def unsafe(self, names: Iterable[str]) -> list[str]:
        """Those of the header *names* that another origin must not get."""
        return [name for name in names if name.lower() not in SAFE_HEADERS]
