"""
Decides, for any HTTP library, which requests get a key, which key, and to which origins the key may go.

It performs no I/O. For a redirect a library makes a new request; `Operation` connects that to its call.
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
        key: The value of the key header; kept for libraries that drop the header at a redirect.
        challenged: Whether the last answer was a 401: then the library may send the same request object again with
            credentials.
    """

    def __init__(self, request: Any, origin: Origin, key: str, attempts: Attempts) -> None:
        self._requests = [ref(request)]  # the requests sent for this call
        self.origin = origin
        self.key = key
        self.attempts = attempts
        self.challenged: bool = False

    def continues_with(self, request: Any, *, now: float) -> bool:
        """
        Whether *request* is another step of this call: a redirect, or the next round of an authentication.

        A request object that was already sent for this call continues it only after a 401 and within the call's time.
        Otherwise the caller sends the object again, and that is a new call.
        """
        if any(sent() is request for sent in self._requests):
            return self.challenged and self.attempts.left(now=now) > LEAST
        return True

    def next_step(self, request: Any) -> Attempts:
        """The attempts for *request*, which a redirect or an authentication round made."""
        self._requests.append(ref(request))
        return self.attempts.redirected()

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Copy as None: a pickled or deep copy of a request, such as in a cached response, is not part of the call."""
        return type(None), ()


class Rules:
    """
    The settings that all clients share.

    Raises:
        ValueError: *trusted_origins* contains something else than origins, or *header* cannot be a header name.
        TypeError: *trusted_origins* is a str.
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
        """Whether requests with *method* are keyed and retried."""
        return method in self._methods

    def begin(self, request: Any, origin: Origin, *, given: str | None, now: float) -> Operation:
        """
        Begin a new call.

        Args:
            request: The library's request object; only a weak reference is kept.
            given: The value of the key header, if the caller set it.
        Raises:
            ValueError: `new_key` returned a key that cannot be sent in a header.
        """
        key = self._write_key(self._new_key()) if given is None else given
        return Operation(request, origin, key, Attempts(self.retry, began=now))

    def may_go_to(self, operation: Operation, origin: Origin) -> bool:
        """Whether the call's key, credentials and body may be sent to *origin*."""
        return is_allowed(operation.origin, origin, self._trusted)

    def refusal(self, method: str | None, origin: Origin, *, has_body: bool) -> str | None:
        """
        Why a redirect to *origin*, which is not allowed for the call, is refused. None: follow it, but without the
        headers for the first origin.
        """
        if method in {"GET", "HEAD"} and not has_body:
            return None
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        return (
            f"a redirect would send this {method}, its {self.header} and its body to {origin.scheme}://{host}, another "
            "origin than the request was made for; nothing was sent. Send it there yourself, or add that origin to "
            "trusted_origins"
        )

    def unsafe(self, names: Iterable[str]) -> list[str]:
        """The header *names* that another origin must not get."""
        return [name for name in names if name.lower() not in SAFE_HEADERS]
