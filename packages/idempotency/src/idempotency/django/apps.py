"""The Django application, for its management command: put "idempotency.django" into `INSTALLED_APPS`."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["IdempotencyConfig"]


class IdempotencyConfig(AppConfig):
    """Named after the library: the last part of the module's name is Django's own."""

    name = "idempotency.django"
    label = "idempotency"
