"""The clock of a MySQL store counts the time that a statement waited, and ignores the session's time zone."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa

from idempotency import Acquired, Completed, Fingerprint, Owner, Running, StorageKey
from idempotency.stores._sql.mysql import MysqlRecords
from idempotency.stores._sql.steps import Query
from idempotency.stores.sqlalchemy import SyncSQLAlchemyStore

HOUR = 3600
TOLERANCE = 60.0  # s between reading the machine's clock and the server's, on a slow machine


class Change(NamedTuple):
    """A statement that began before a change of the zone's offset; all in seconds, the instants before now."""

    began: int
    changed: int
    offset_before: int
    offset_after: int


CHANGES = {
    "to summer time": Change(began=HOUR, changed=HOUR // 2, offset_before=0, offset_after=HOUR),
    "from before the hour that comes twice": Change(
        began=HOUR, changed=-HOUR // 2, offset_before=HOUR, offset_after=0
    ),
    "from within the hour that comes twice": Change(
        began=HOUR, changed=HOUR * 3 // 2, offset_before=HOUR, offset_after=0
    ),
}


@pytest.fixture
def engine(mariadb_server_url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(f"mysql+pymysql://{mariadb_server_url}")
    yield engine
    engine.dispose()


def add_zone(connection: sa.Connection, changed: float, change: Change) -> str:
    """Make a time zone whose offset changes at *changed*; the server keeps the zones in tables."""
    name = f"Test/{secrets.token_hex(6)}"
    run = connection.exec_driver_sql
    run("INSERT INTO mysql.time_zone (Use_leap_seconds) VALUES ('N')")
    zone = run("SELECT LAST_INSERT_ID()").scalar_one()
    run("INSERT INTO mysql.time_zone_name VALUES (%s, %s)", (name, zone))
    for kind, offset in enumerate((change.offset_before, change.offset_after)):
        run("INSERT INTO mysql.time_zone_transition_type VALUES (%s, %s, %s, 0, 'X')", (zone, kind, offset))
    for instant, kind in ((0, 0), (int(changed), 1)):
        run("INSERT INTO mysql.time_zone_transition VALUES (%s, %s, %s)", (zone, instant, kind))
    connection.commit()
    return name


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_the_session_zones_offset_does_not_shift_the_clock(
    engine: sa.Engine, change: Change
) -> None:
    clock = next(MysqlRecords("t")._delete_expired(1, but=StorageKey("")))
    assert isinstance(clock, Query)
    with engine.connect() as connection:
        now = time.time()
        zone = add_zone(connection, now - change.changed, change)
        connection.exec_driver_sql("SET SESSION time_zone = %s", (zone,))
        # SYSDATE is not changed by it.
        connection.exec_driver_sql("SET timestamp = %s", (now - change.began,))
        measured = int(connection.exec_driver_sql(clock.sql).scalar_one()) / 1e6
        connection.invalidate()  # which discards its zone and its clock
    assert measured == pytest.approx(now, abs=TOLERANCE)


def test_a_statement_that_began_before_summer_time_does_not_take_over_a_live_lease(engine: sa.Engine) -> None:
    change = CHANGES["to summer time"]
    key = StorageKey(f"summer-{secrets.token_hex(6)}")
    store = SyncSQLAlchemyStore(engine)
    store.create_schema()

    def acquire(owner: bytes) -> Acquired | Completed | Running:
        return store.acquire(
            key, fingerprint=Fingerprint(b"f" * 32), owner=Owner(owner), lease=600.0, retention=6_000.0
        )

    first = acquire(b"o" * 16)
    assert isinstance(first, Acquired)
    with engine.connect() as connection:
        now = time.time()
        zone = add_zone(connection, now - change.changed, change)

    @sa.event.listens_for(engine, "checkout")
    def begin_early(driver: Any, *_: object) -> None:
        with driver.cursor() as cursor:
            cursor.execute("SET SESSION time_zone = %s", (zone,))
            cursor.execute("SET timestamp = %s", (now - change.began,))

    reply = acquire(b"p" * 16)
    assert isinstance(reply, Running), reply
    assert store.renew(first.claim, lease=600.0)
