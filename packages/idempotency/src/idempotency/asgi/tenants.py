"""Finds whose key it is: the principal that a middleware's `tenant` callable reads from the scope."""

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
    """A tenant is taken from a credential, which may be replaced between two attempts of one call."""


def by_user(subject: Callable[[Any], object] | None = None) -> Callable[[Scope], str]:
    """
    A tenant for each authenticated user: what an authentication middleware outside left as `scope["user"]`.

    A user keeps the same tenant with a new access token, another session or a new signature. Starlette, Litestar and
    Django Channels put a user there.

    Args:
        subject: The user's stable and unique identifier, a text, an int or a UUID, from the user. By default the
            first that is there of the attributes `identity`, `pk`, `id`, `sub` and `username`; of a mapping, such as
            the claims of a token, its `sub`, `id` or `username`; and a text itself. Users of several issuers need both:
            `by_user(lambda user: f"{user.issuer} {user.sub}")`.
    Raises:
        TypeError: *subject* is not a plain function.

    For a request the callable raises `MissingTenant` (400) where the user is not authenticated, `RuntimeError` where
    nothing put a user into the scope, and `TypeError` where the user has no usable identifier: both are mistakes of the
    set-up, and end in a 500.

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
        except NotImplementedError:  # Starlette's BaseUser has it, and leaves it to its subclasses
            continue
        if found is not None:
            return found
    return None


def by_header(name: str, *, stable: bool = False) -> Callable[[Scope], str]:
    """
    A tenant for each value of a request header, hashed, so that nothing secret reaches the store.

    For a header that names the caller and was authenticated, such as the user that a gateway puts into each request. A
    keyed request without the header, or with a blank one, is refused (400): strangers must not share a tenant. Repeated
    header lines count together; blanks round a value do not.

    **Not for a credential.** If a token is replaced between two attempts of one call, the second attempt counts as
    another caller's request and runs again (docs/security.md). So `Authorization`, cookies, API keys, signatures and
    similar headers warn (`CredentialTenantWarning`).

    Args:
        stable: True switches the warning off: a caller's value stays the same for as long as records are kept, as with
            an API key that is never replaced.
    Raises:
        ValueError: *name* is no header's name.

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
            f"by_header({name!r}) takes a credential for the caller: once it is replaced, a retry under the same "
            "Idempotency-Key runs again, and charges twice. Use by_user(), or another callable that returns the "
            "principal which your authentication verified; or by_header(..., stable=True) if this header's value never "
            "changes while records are kept",
            CredentialTenantWarning,
            stacklevel=2,
        )
    wanted = name.lower().encode("ascii")

    def tenant(scope: Scope) -> str:
        values = [value.strip(b" \t") for header, value in scope["headers"] if header == wanted]
        if not b"".join(values):  # a blank one names nobody, and many may send it
            raise MissingTenant(f"the request has no {name} header, which says whose Idempotency-Key this is")
        return sha256(b"\n".join(values)).hexdigest()[:32]

    return tenant


def one_tenant() -> Callable[[Scope], str]:
    """All requests share one tenant: right for one trusted caller; with several users, one may get another's answer."""
    return lambda _scope: ""
