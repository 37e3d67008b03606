"""The Django application that brings the migration of the records' table."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["IdempotencyRecordsConfig"]


class IdempotencyRecordsConfig(AppConfig):
    """Labelled after the table, because the default label, "django", would clash with Django itself."""

    name = "idempotency.stores.django"
    label = "idempotency_records"
    verbose_name: str = "Idempotency records"
