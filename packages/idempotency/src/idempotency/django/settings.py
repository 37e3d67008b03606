"""The `IDEMPOTENCY` setting of a Django project."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.utils.module_loading import import_string

from idempotency._core.errors import MissingTenant
from idempotency._core.policy import Policy
from idempotency.engine.checks import is_async_store
from idempotency.events import Hook

__all__ = ["Settings", "by_user", "open_project_store"]

_NAMES: Final = frozenset({"STORE", "PRINCIPAL", "POLICY", "HOOKS", "KEY_HEADERS"})


def by_user(request: HttpRequest) -> str:
    """
    The primary key of the logged-in user: the default for `IDEMPOTENCY["PRINCIPAL"]`, which says whose key it is.

    Raises:
        MissingTenant: Nobody is logged in; different users must not share keys.
    """
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        raise MissingTenant(
            "log in to use an Idempotency-Key: it belongs to a user, and the request has none"
        )
    return str(user.pk)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    `settings.IDEMPOTENCY`, read once.

    Attributes:
        store: A URL for `open_store`, a store, or a function that makes one.
        principal: Takes the request and returns whose key it is.
        policy: The policy, or a function that takes the request and returns it; None: the request is not protected.
        hooks: Called with every event.
        key_names: The headers that may carry a key, in lower case: those of the policy, and `KEY_HEADERS`.
    """

    store: Any
    principal: Callable[[HttpRequest], str]
    policy: Policy | Callable[[HttpRequest], Policy | None]
    hooks: Sequence[Hook]
    key_names: frozenset[bytes]

    @classmethod
    def read(cls) -> Settings:
        """
        Read the setting; a str instead of an object is a dotted path to the object.

        Raises:
            ImproperlyConfigured: The setting is missing, or one of its members has the wrong type.
        """
        given = getattr(settings, "IDEMPOTENCY", None)
        if not isinstance(given, dict) or "STORE" not in given:
            raise ImproperlyConfigured(
                'set IDEMPOTENCY = {"STORE": "redis://localhost:6379/0"}, or another URL, store or function'
            )
        if unknown := sorted(set(given) - _NAMES):
            raise ImproperlyConfigured(
                f"IDEMPOTENCY has no {', '.join(unknown)}; it knows {', '.join(sorted(_NAMES))}"
            )
        principal = _object(given.get("PRINCIPAL", by_user))
        policy = _object(given.get("POLICY", Policy()))
        hooks = [_object(hook) for hook in given.get("HOOKS", ())]
        if not callable(principal):
            raise ImproperlyConfigured('IDEMPOTENCY["PRINCIPAL"] must be a function of the request')
        if not isinstance(policy, Policy) and not callable(policy):
            raise ImproperlyConfigured('IDEMPOTENCY["POLICY"] must be a Policy, or a function of the request')
        more = given.get("KEY_HEADERS", ())
        if isinstance(more, str) or not all(isinstance(name, str) for name in more):
            raise ImproperlyConfigured('IDEMPOTENCY["KEY_HEADERS"] must be a list of header names')
        names = {*(policy if isinstance(policy, Policy) else Policy()).key_headers, *more}
        return cls(
            store=given["STORE"],
            principal=principal,
            policy=policy,
            hooks=hooks,
            key_names=frozenset(name.lower().encode("ascii") for name in names),
        )

    def policy_for(self, request: HttpRequest) -> Policy | None:
        """The policy for *request*; None if it is not protected."""
        return self.policy if isinstance(self.policy, Policy) else self.policy(request)


def open_project_store(given: Any, *, asynchronous: bool) -> Any:
    """
    The store in the setting: async if *asynchronous*, otherwise sync.

    Raises:
        ImproperlyConfigured: The store is of the other kind.
    """
    from idempotency.stores.url import open_store, open_sync_store

    if isinstance(given, str) and ":" in given:
        return open_store(given) if asynchronous else open_sync_store(given)
    store = _object(given)
    if callable(store):
        store = store()
    if is_async_store(store) is not asynchronous:
        wanted, server = ("a Store", "ASGI") if asynchronous else ("a SyncStore", "WSGI")
        raise ImproperlyConfigured(
            f'IDEMPOTENCY["STORE"]: under {server} it must be {wanted}, not a {type(store).__name__}; a URL '
            "gives the right kind for either"
        )
    return store


def _object(given: Any) -> Any:
    return import_string(given) if isinstance(given, str) else given
