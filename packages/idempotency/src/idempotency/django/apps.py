"""The Django application, for its management command: put "idempotency.django" into `INSTALLED_APPS`."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["IdempotencyConfig"]


class IdempotencyConfig(AppConfig):
    """Labelled `idempotency`, because the default label, "django", would clash with Django itself."""

    name = "idempotency.django"
    label = "idempotency"
