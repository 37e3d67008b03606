"""The choice of the connection that is closed for a new one."""

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


def test_nobody_is_closed_while_there_is_room() -> None:
    table, connections = ConnectionTable(2), [Connection(), Connection()]
    assert all(table.admit(connection) for connection in connections)
    assert not any(connection.evicted for connection in connections)


def test_the_one_that_waits_for_longest_is_closed() -> None:
    first, second = Connection(), Connection()
    table = full(first, second)
    table.works(first)
    table.waits(first)  # it has been used since
    assert table.admit(Connection())
    assert second.evicted
    assert not first.evicted


def test_one_that_waits_is_closed_before_one_that_does_not_read() -> None:
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


def test_one_that_reads_again_is_at_work() -> None:
    connection = Connection()
    table = full(connection)
    table.works(connection)
    table.stalls(connection)
    table.flows(connection)
    assert not table.admit(Connection())
    assert not connection.evicted


def test_connections_without_a_key_are_closed_before_others_are_refused() -> None:
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


def test_one_too_many_is_refused_and_makes_room_for_the_next_that_is_refused() -> None:
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


def test_a_connection_that_is_gone_takes_no_place_whatever_is_still_said_of_it() -> None:
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
def test_never_more_are_open_than_may_be_but_for_one_that_is_being_refused(
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
                continue  # nothing is read from it but to be thrown away, so no request of it runs
            acts = {"works": table.works, "waits": table.waits, "stalls": table.stalls, "flows": table.flows}
            acts.get(step, table.remove)(connection)
        assert len(table) <= most + 1
        assert not any(one.evicted and (one in table._waiting or one in table._working) for one in opened)
