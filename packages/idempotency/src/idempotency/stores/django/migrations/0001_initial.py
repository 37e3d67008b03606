"""Create the records' table, for whichever kind of database is migrated."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import migrations

from idempotency.stores._sql.records import records_for

__all__ = ["Migration"]

_TABLE = "idempotency_record"


def _create(_apps: Any, schema_editor: Any) -> None:
    for statement in records_for(schema_editor.connection.vendor, _TABLE).schema():
        schema_editor.execute(statement, params=None)


def _drop(_apps: Any, schema_editor: Any) -> None:
    vendor = schema_editor.connection.vendor
    schema_editor.execute(f"DROP TABLE {_TABLE}", params=None)
    beside = {"postgresql": f"DROP SEQUENCE {_TABLE}_fence", "sqlite": f"DROP TABLE {_TABLE}_fence"}
    if vendor in beside:
        schema_editor.execute(beside[vendor], params=None)


class Migration(migrations.Migration):
    """It changes nothing where `create_schema` or `schema_sql` ran before."""

    dependencies: ClassVar[list[tuple[str, str]]] = []
    # No block of its own: MySQL takes no DDL in a transaction. Where a database does, the migration's is enough.
    operations: ClassVar[list[Any]] = [migrations.RunPython(_create, _drop, atomic=False)]
