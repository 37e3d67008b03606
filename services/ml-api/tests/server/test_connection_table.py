"""Which connection is closed for a new one at the limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_api.server.connection_table import ConnectionTable


class Connection:
    def __init__(self, name: str = "", *, anonymous: bool = False) -> None:
        self.name, self.anonymous, self.evicted = name, anonymous, False

    def evict(self) -> None:
        self.evicted = True


def full(*connections: Connection) -> ConnectionTable:
    table = ConnectionTable(len(connections))
    for connection in connections:
        assert table.admit(connection)
    return table


def test_no_connection_is_closed_below_the_limit() -> None:
    table, connections = ConnectionTable(2), [Connection(), Connection()]
    assert all(table.admit(connection) for connection in connections)
    assert not any(connection.evicted for connection in connections)


def test_the_longest_waiting_connection_is_closed() -> None:
    first, second = Connection(), Connection()
    table = full(first, second)
    table.works(first)
    table.waits(first)  # used more recently than the second
    assert table.admit(Connection())
    assert second.evicted
    assert not first.evicted


def test_a_waiting_connection_is_closed_before_a_stalled_one() -> None:
    unread, waiting = Connection(), Connection()
    table = full(unread, waiting)
    table.works(unread)
    table.stalls(unread)
    assert table.admit(Connection())
    assert waiting.evicted
    newest = next(iter(table._waiting))
    table.works(newest)
    assert table.admit(Connection())
    assert unread.evicted
    assert not newest.evicted


def test_a_connection_that_reads_again_is_not_closed() -> None:
    connection = Connection()
    table = full(connection)
    table.works(connection)
    table.stalls(connection)
    table.flows(connection)
    assert not table.admit(Connection())
    assert not connection.evicted


def test_anonymous_connections_are_closed_before_new_ones_are_refused() -> None:
    known, stranger = Connection(), Connection(anonymous=True)
    table = full(known, stranger)
    for connection in (known, stranger):
        table.works(connection)
    newest = Connection()
    assert table.admit(newest)
    assert (known.evicted, stranger.evicted) == (False, True)
    table.works(newest)
    assert not table.admit(Connection())
    assert not newest.evicted


def test_a_refused_connection_is_closed_for_the_next_refused_one() -> None:
    busy = Connection()
    table = full(busy)
    table.works(busy)
    surplus = [Connection() for _ in range(5)]
    assert not any(table.admit(connection) for connection in surplus)
    assert [connection.evicted for connection in surplus] == [True] * 4 + [False]
    assert len(table) == 2
    table.remove(busy)
    table.remove(surplus[-1])
    assert table.admit(Connection())


def test_later_events_of_a_removed_connection_are_ignored() -> None:
    gone = Connection()
    table = full(gone)
    table.remove(gone)
    for said in (table.works, table.stalls, table.waits, table.flows):
        said(gone)
    assert len(table) == 0


@pytest.mark.parametrize("most", [1, 3])
@given(
    st.lists(
        st.tuples(st.sampled_from(["new", "works", "waits", "stalls", "flows", "gone"]), st.integers(0, 9))
    )
)
def test_open_connections_never_exceed_the_limit_by_more_than_one(
    most: int, steps: list[tuple[str, int]]
) -> None:
    table, opened, refused = ConnectionTable(most), list[Connection](), list[Connection]()
    for step, number in steps:
        if step == "new":
            opened.append(Connection())
            if not table.admit(opened[-1]):
                refused.append(opened[-1])
        elif opened:
            connection = opened[number % len(opened)]
            if step == "works" and connection in refused:
                continue  # its input is discarded, so none of its requests runs
            acts = {"works": table.works, "waits": table.waits, "stalls": table.stalls, "flows": table.flows}
            acts.get(step, table.remove)(connection)
        assert len(table) <= most + 1
        assert not any(one.evicted and (one in table._waiting or one in table._working) for one in opened)
