"""An application behind the middleware, on a real server that loses responses on demand; for tests of clients."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import uvicorn
from patience import until

from idempotency import IdempotencyMiddleware, Policy, one_tenant
from idempotency.stores.memory import MemoryStore


class Shop:
    """
    An application behind the middleware, with one of `faults` for each request.

    Faults: None; "lost" (the response is), "half" (of the response is), "stall" (no response comes), a status, a whole
    response, or an event: the response is streamed, its second chunk once the event is set.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.faults: deque[Any] = deque()
        self.seen: list[tuple[str, str | None, bytes]] = []
        self.charges = 0
        self.policy = Policy()
        self.answer: tuple[int, list[tuple[bytes, bytes]], bytes] = (201, [], b'{"charge": 1}')
        self.hold: threading.Event | None = None
        self._guarded = IdempotencyMiddleware(
            self._charge, store=MemoryStore(), tenant=one_tenant(), policy=lambda _: self.policy
        )

    async def _charge(self, scope: Any, receive: Any, send: Any) -> None:
        hold, self.hold = self.hold, None
        if hold is not None:
            await until(hold.is_set)
        self.charges += 1
        await self._send(send, *self.answer)

    async def _send(self, send: Any, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        headers = [*headers, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        chunks: list[bytes] = []
        more = True
        while more:
            message = await receive()
            chunks.append(message.get("body", b""))
            more = message.get("more_body", False)
        body = b"".join(chunks)
        headers = dict(scope["headers"])
        key = headers.get(b"idempotency-key")
        self.seen.append((scope["method"], None if key is None else key.decode(), body))
        messages: list[Any] = []
        replayed = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive_again() -> Any:
            return next(replayed, None) or await receive()

        async def keep(message: Any) -> None:
            messages.append(message)

        fault = self.faults.popleft() if self.faults else None
        match fault:
            case None:
                await self._guarded(scope, receive_again, send)
            case int():
                await self._send(send, fault, [], b"no")
            case tuple():
                await self._send(send, *fault)
            case "lost" | "half":
                await self._guarded(scope, receive_again, keep)
                if fault == "half":
                    await send(messages[0])
                    await send({"type": "http.response.body", "body": b'{"ch', "more_body": True})
                    receive.__self__.transport.close()  # after what was sent
                else:
                    receive.__self__.transport.abort()
            case "stall":
                await self._guarded(scope, receive_again, keep)
                while (await receive())["type"] != "http.disconnect":
                    pass
            case threading.Event():  # stream
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"first", "more_body": True})
                await until(fault.is_set)
                await send({"type": "http.response.body", "body": b"second"})


@contextlib.contextmanager
def serving(shop: Shop) -> Iterator[str]:
    """The URL of *shop* on a server of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    # With another loop, versions of uvicorn before 0.36 make uvloop the default of this process.
    config = uvicorn.Config(
        shop, http="h11", loop="asyncio", lifespan="off", log_config=None, access_log=False, date_header=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=10)
    listener.close()
    assert not thread.is_alive()
