"""A transport that sends what one turn of the loop wrote in one go."""

from __future__ import annotations

import asyncio

import pytest

from ml_api.server.one_write import OneWrite

pytestmark = pytest.mark.anyio


class Wire(asyncio.Transport):
    """Notes what is sent, and the close."""

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


async def test_head_and_body_leave_together_and_soon(wire: Wire, one_write: OneWrite) -> None:
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


async def test_much_goes_at_once_so_that_the_transport_can_slow_the_writer(
    wire: Wire, one_write: OneWrite
) -> None:
    one_write.write(b"x" * 65_536)
    assert wire.sent == []
    one_write.write(b"y")
    assert wire.sent == [b"x" * 65_536 + b"y"]
    await asyncio.sleep(0)
    assert len(wire.sent) == 1


async def test_a_close_is_left_to_the_owner_until_the_connection_is_lost(wire: Wire) -> None:
    closed = []
    one_write = OneWrite(wire, asyncio.get_running_loop(), lambda: closed.append("by the owner"))
    one_write.close()
    assert (closed, wire.sent) == (["by the owner"], [])
    one_write.lost()
    one_write.close()
    assert closed == ["by the owner"]


async def test_it_is_closing_when_the_owner_or_the_transport_says_so(wire: Wire, one_write: OneWrite) -> None:
    assert not one_write.is_closing()
    one_write.left = True
    assert one_write.is_closing()
    one_write.left = False
    wire.close()
    assert one_write.is_closing()


@pytest.mark.parametrize("end", ["aborted", "closed"])
async def test_nothing_is_written_to_a_connection_that_was_lost(
    wire: Wire, one_write: OneWrite, end: str
) -> None:
    one_write.write(b"half")
    wire.sent.append(end)  # not through us: by the peer, or by the server's own timer
    await asyncio.sleep(0)
    assert wire.sent == [end]


async def test_everything_else_is_the_transports_own(one_write: OneWrite) -> None:
    assert one_write.get_extra_info("peername") == ("192.0.2.1", 7)
