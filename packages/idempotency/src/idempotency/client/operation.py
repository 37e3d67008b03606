"""
Decides, for any HTTP library, which methods get a key, which key, and for which origins.

No I/O. A redirect makes a new request of the library's; `Operation` is what joins it to the call that it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Final
from weakref import ref

from idempotency._core.headers import is_token
from idempotency.client.attempts import LEAST, Attempts
from idempotency.client.keys import bare_key, quote_key
from idempotency.client.origins import SAFE_HEADERS, Origin, is_allowed, read_origins
from idempotency.client.retry import Retry

__all__ = ["METHODS", "Operation", "Rules"]

METHODS: Final = frozenset({"POST", "PATCH"})


class Operation:
    """
    One logical call: the origin that it was made for, its key, and its deadline.

    Attributes:
        key: As the header carries it; kept for libraries that forget it at a redirect.
        challenged: Whether the last answer was a 401, after which a library that authenticates may send the same
            request object once more.
    """

    def __init__(self, request: Any, origin: Origin, key: str, attempts: Attempts) -> None:
        self._requests = [ref(request)]  # that were sent for it
        self.origin = origin
        self.key = key
        self.attempts = attempts
        self.challenged: bool = False

    def continues_with(self, request: Any, *, now: float) -> bool:
        """
        Whether *request* is a further step of this call: of a redirect, or of an authentication round.

        An object that was sent for it already is one after a 401, within the call's time. Else its caller sends it
        again, which is a call of its own.
        """
        if any(sent() is request for sent in self._requests):
            return self.challenged and self.attempts.left(now=now) > LEAST
        return True

    def next_step(self, request: Any) -> Attempts:
        """The attempts for *request*, which a redirect or an authentication round made."""
        self._requests.append(ref(request))
        return self.attempts.redirected()

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """None: a pickled or deep copy of a request, such as that of a cached response, is no part of the call."""
        return type(None), ()


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
        quoted: bool,
    ) -> None:
        if not is_token(header):
            raise ValueError("header must be the name of a header, such as Idempotency-Key")
        self.header = header
        self.retry = retry
        self._methods = frozenset(method.upper() for method in methods)
        self._new_key = new_key
        self._write_key = quote_key if quoted else bare_key
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
        key = self._write_key(self._new_key()) if given is None else given
        return Operation(request, origin, key, Attempts(self.retry, began=now))

    def may_go_to(self, operation: Operation, origin: Origin) -> bool:
        """Whether the call's key, credentials and body may be sent to *origin*."""
        return is_allowed(operation.origin, origin, self._trusted)

    def refusal(self, method: str | None, origin: Origin, *, has_body: bool) -> str | None:
        """
        Why a redirect to *origin*, which the call may not go to, is refused; None where it may be followed without
        whatever was meant for the first origin.
        """
        if method in {"GET", "HEAD"} and not has_body:
            return None
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        return (
            f"a redirect would send this {method}, its {self.header} and its body to {origin.scheme}://{host}, another "
            "origin than it was made for; nothing was sent. Send it there yourself, or name that origin in "
            "trusted_origins"
        )

    def unsafe(self, names: Iterable[str]) -> list[str]:
        """Selects the header *names* that another origin must not get."""
        return [name for name in names if name.lower() not in SAFE_HEADERS]
