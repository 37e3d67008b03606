"""`complete_in` in a Django transaction that can only be rolled back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import django_project
import pytest
from django.db import connections, transaction

from idempotency import Acquired, Fingerprint, Owner, StorageKey
from idempotency.errors import StoreError
from idempotency.stores.django import SyncDjangoStore

KEY = StorageKey("k")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SyncDjangoStore]:
    django_project.configure()
    connections.settings["failed"] = {**connections.settings["default"], "NAME": tmp_path / "db.sqlite3"}
    store = SyncDjangoStore("failed")
    store.create_schema()
    yield store
    store.close()
    connections["failed"].close()
    del connections["failed"]
    del connections.settings["failed"]


def test_complete_in_a_failed_transaction_raises_store_error_and_records_nothing(
    store: SyncDjangoStore,
) -> None:
    reply = store.acquire(KEY, fingerprint=Fingerprint(b"f"), owner=Owner(b"o" * 16), lease=30, retention=60)
    assert isinstance(reply, Acquired)
    with transaction.atomic("failed"):
        with pytest.raises(LookupError), transaction.mark_for_rollback_on_error("failed"):
            raise LookupError("of the application")
        with pytest.raises(StoreError, match="TransactionManagementError"):
            store.complete_in(connections["failed"], reply.claim, b"{}", retention=60)
    record = store.get(KEY)
    assert record is not None
    assert record.outcome is None
