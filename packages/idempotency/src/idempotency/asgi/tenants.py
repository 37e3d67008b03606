"""Makes `tenant` callables for the middleware: they read from the scope whose key it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

from idempotency._core.callables import is_plain
from idempotency._core.credentials import is_credential
from idempotency._core.errors import MissingTenant
from idempotency._core.headers import is_token
from idempotency.asgi.types import Scope

__all__ = ["CredentialTenantWarning", "by_header", "by_user", "one_tenant"]

_SUBJECT_ATTRIBUTES: Final = ("identity", "pk", "id", "sub", "username")
_SUBJECT_MEMBERS: Final = ("sub", "id", "username")


class CredentialTenantWarning(UserWarning):
    """The tenant comes from a credential, which may be replaced between two attempts of one call."""


def by_user(subject: Callable[[Any], object] | None = None) -> Callable[[Scope], str]:
    """
    One tenant for each authenticated user: reads `scope["user"]`, set by an authentication middleware outside.

    A user keeps the same tenant with a new access token, another session or a new signature. Starlette, Litestar and
    Django Channels set `scope["user"]`.

    Args:
        subject: Takes the user and returns its stable and unique identifier: a str, an int or a UUID. The default is
            the first of the attributes `identity`, `pk`, `id`, `sub` and `username` that exists; for a mapping, such as
            the claims of a token, its `sub`, `id` or `username`; for a str, the str. With several issuers use both
            names: `by_user(lambda user: f"{user.issuer} {user.sub}")`.
    Raises:
        TypeError: *subject* is not a plain function.

    The returned callable raises `MissingTenant` (400) if the user is not authenticated. It raises `RuntimeError` if
    there is no user in the scope, and `TypeError` if the user has no usable identifier: both are set-up mistakes and
    end in a 500.

    >>> tenant = by_user()
    >>> tenant({"user": {"sub": "alice", "exp": 1764000000}}) == tenant({"user": {"sub": "alice", "exp": 1764003600}})
    True
    >>> by_user(lambda user: user.number)
    <function by_user.<locals>.tenant at ...>
    """
    if subject is not None and not is_plain(subject):
        raise TypeError("subject must be a plain function of the user, such as `lambda user: user.id`")

    def tenant(scope: Scope) -> str:
        user = scope.get("user")
        if user is None:
            raise RuntimeError(
                'by_user() found no scope["user"]: put a middleware that authenticates requests outside '
                "IdempotencyMiddleware (under Starlette and FastAPI: add it after), or pass a tenant callable that "
                "reads what yours leaves"
            )
        if getattr(user, "is_authenticated", True) is False:
            raise MissingTenant(
                "the request is not authenticated, so it does not say whose Idempotency-Key this is"
            )
        found = _subject_of(user) if subject is None else subject(user)
        if isinstance(found, bool) or not isinstance(found, str | int | UUID):
            raise TypeError(
                f"by_user() found no identifier in a {type(user).__qualname__}, but a {type(found).__qualname__}; pass "
                "by_user(subject) with a function that returns the user's stable identifier: a str, an int or a UUID"
            )
        name = str(found)
        if not name.strip():
            raise TypeError(f"by_user() found a blank identifier in a {type(user).__qualname__}")
        return name

    return tenant


def _subject_of(user: Any) -> object:
    if isinstance(user, str | int | UUID):
        return user
    if isinstance(user, Mapping):
        return next((user[name] for name in _SUBJECT_MEMBERS if user.get(name) is not None), None)
    for name in _SUBJECT_ATTRIBUTES:
        try:
            found = getattr(user, name, None)
        except NotImplementedError:  # Starlette's BaseUser declares `identity` for its subclasses
            continue
        if found is not None:
            return found
    return None


def by_header(name: str, *, stable: bool = False) -> Callable[[Scope], str]:
    """
    One tenant for each value of a request header. The value is hashed, so that no secret reaches the store.

    Use it for an authenticated header that names the caller, such as the user that a gateway adds to each request. A
    keyed request without the header, or with a blank value, is refused (400): different users must not share a tenant.
    Repeated header lines count together; blanks around a value do not count.

    **Not for a credential.** If a token is replaced between two attempts of one call, the second attempt counts as
    another caller's request and runs again (docs/security.md). So `Authorization`, cookies, API keys, signatures and
    similar headers warn (`CredentialTenantWarning`).

    Args:
        stable: True switches the warning off. Use it if a caller's value never changes while records are kept, such as
            an API key that is never replaced.
    Raises:
        ValueError: *name* cannot be the name of a header.

    >>> tenant = by_header("X-User-Id")
    >>> alice = tenant({"headers": [(b"x-user-id", b"alice")]})
    >>> bob = tenant({"headers": [(b"x-user-id", b"bob")]})
    >>> alice == bob
    False
    """
    if not is_token(name):
        raise ValueError("name must be the name of a header")
    if not stable and is_credential(name):
        warnings.warn(
            f"by_header({name!r}) uses a credential as the tenant: once it is replaced, a retry under the same "
            "Idempotency-Key runs again, and may charge twice. Use by_user(), or another callable that returns the "
            "principal which your authentication verified; or by_header(..., stable=True) if this header's value never "
            "changes while records are kept",
            CredentialTenantWarning,
            stacklevel=2,
        )
    wanted = name.lower().encode("ascii")

    def tenant(scope: Scope) -> str:
        values = [value.strip(b" \t") for header, value in scope["headers"] if header == wanted]
        if not b"".join(values):  # a blank value names nobody
            raise MissingTenant(f"the request has no {name} header, which says whose Idempotency-Key this is")
        return sha256(b"\n".join(values)).hexdigest()[:32]

    return tenant


def one_tenant() -> Callable[[Scope], str]:
    """All requests share one tenant. Only for one trusted caller: a user could get the answer of another user."""
    return lambda _scope: ""
