"""Add the column that tells how long a claim has been held, where the table was made without it: PostgreSQL."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import migrations

from idempotency.stores._sql.records import records_for

__all__ = ["Migration"]


def _add(_apps: Any, schema_editor: Any) -> None:
    vendor = schema_editor.connection.vendor
    if vendor == "postgresql":
        for statement in records_for(vendor, "idempotency_record").schema():
            schema_editor.execute(statement, params=None)


class Migration(migrations.Migration):
    """It changes nothing where the column is there."""

    dependencies: ClassVar[list[tuple[str, str]]] = [("idempotency_records", "0001_initial")]
    operations: ClassVar[list[Any]] = [migrations.RunPython(_add, migrations.RunPython.noop, atomic=False)]
