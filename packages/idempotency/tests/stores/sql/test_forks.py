"""Stores that were used before a fork: a child never speaks on its parent's connections."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def run(script: str, url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), url], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_child_may_not_use_the_pool_of_its_parent(postgres_url: str) -> None:
    """Each would read the replies to the other's statements."""
    script = """
        import os, sys, warnings
        from psycopg_pool import ConnectionPool
        from idempotency.stores.postgres import SyncPostgresStore
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside the pool's threads
        with ConnectionPool(sys.argv[1], min_size=1, open=True) as pool:
            store = SyncPostgresStore(pool, deadline=30.0)
            assert store.get("k") is None
            child = os.fork()
            if child == 0:
                try:
                    store.get("k")
                except RuntimeError as error:
                    os._exit(0 if "after the fork" in str(error) else 2)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert store.get("k") is None
    """
    run(script, postgres_url)


def test_a_child_may_use_a_pool_that_was_not_open_yet(postgres_url: str) -> None:
    script = """
        import os, sys
        from psycopg_pool import ConnectionPool
        from idempotency.stores.postgres import SyncPostgresStore
        pool = ConnectionPool(sys.argv[1], min_size=1, open=False)
        store = SyncPostgresStore(pool, deadline=30.0, owns_pool=True)
        child = os.fork()
        if child == 0:
            assert store.get("k") is None
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """
    run(script, postgres_url)


def test_a_store_with_its_own_engine_opens_other_connections_in_a_child(mariadb_server_url: str) -> None:
    script = """
        import os, sys
        from idempotency.stores.url import open_sync_store
        store = open_sync_store(sys.argv[1])
        store.create_schema()

        def connection_id():
            with store._engine.connect() as connection:
                return connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar_one()

        of_parent = connection_id()
        child = os.fork()
        if child == 0:
            os._exit(0 if connection_id() != of_parent and store.get("k") is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert connection_id() == of_parent
        assert store.get("k") is None
        store.close()
    """
    run(script, f"mysql+pymysql://{mariadb_server_url}")
