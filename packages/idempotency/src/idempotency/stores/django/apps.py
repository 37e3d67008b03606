"""The Django application that brings the migration of the records' table."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["IdempotencyRecordsConfig"]


class IdempotencyRecordsConfig(AppConfig):
    """Named after the table; the last part of the module's name is Django's own."""

    name = "idempotency.stores.django"
    label = "idempotency_records"
    verbose_name: str = "Idempotency records"
