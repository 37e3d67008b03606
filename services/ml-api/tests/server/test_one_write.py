"""A transport that sends all writes of one event loop turn together."""

from __future__ import annotations

import asyncio

import pytest

from ml_api.server.one_write import OneWrite

pytestmark = pytest.mark.anyio


class Wire(asyncio.Transport):
    """Records the data sent, and the close."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 7)})
        self.sent: list[bytes | str] = []

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.sent.append(data)

    def close(self) -> None:
        self.sent.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.sent or "aborted" in self.sent


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
async def one_write(wire: Wire) -> OneWrite:
    return OneWrite(wire, asyncio.get_running_loop(), wire.close)


async def test_head_and_body_are_sent_together_in_the_next_loop_turn(wire: Wire, one_write: OneWrite) -> None:
    one_write.write(b"head ")
    one_write.write(b"body")
    assert wire.sent == []
    await asyncio.sleep(0)
    assert wire.sent == [b"head body"]


async def test_later_writes_are_sent_in_order(wire: Wire, one_write: OneWrite) -> None:
    for part in (b"1", b"2", b"3"):
        one_write.write(part)
        await asyncio.sleep(0)
    assert wire.sent == [b"1", b"2", b"3"]


async def test_writes_above_64_kib_are_sent_immediately(wire: Wire, one_write: OneWrite) -> None:
    one_write.write(b"x" * 65_536)
    assert wire.sent == []
    one_write.write(b"y")
    assert wire.sent == [b"x" * 65_536 + b"y"]
    await asyncio.sleep(0)
    assert len(wire.sent) == 1


async def test_close_calls_the_owner_until_the_connection_is_lost(wire: Wire) -> None:
    closed = []
    one_write = OneWrite(wire, asyncio.get_running_loop(), lambda: closed.append("by the owner"))
    one_write.close()
    assert (closed, wire.sent) == (["by the owner"], [])
    one_write.lost()
    one_write.close()
    assert closed == ["by the owner"]


async def test_is_closing_is_true_if_the_owner_or_the_transport_is_closing(
    wire: Wire, one_write: OneWrite
) -> None:
    assert not one_write.is_closing()
    one_write.left = True
    assert one_write.is_closing()
    one_write.left = False
    wire.close()
    assert one_write.is_closing()


@pytest.mark.parametrize("end", ["aborted", "closed"])
async def test_nothing_is_written_to_a_closed_transport(wire: Wire, one_write: OneWrite, end: str) -> None:
    one_write.write(b"half")
    wire.sent.append(end)  # closed by the peer or by a timer of the server
    await asyncio.sleep(0)
    assert wire.sent == [end]


async def test_other_attributes_come_from_the_transport(one_write: OneWrite) -> None:
    assert one_write.get_extra_info("peername") == ("192.0.2.1", 7)
