"""Every HTTP library that has an idempotent client, sync and async, behind one way to make a call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import aiohttp
import httpx
import httpx2
import requests

from idempotency.client import AsyncIdempotencyTransport, IdempotencyTransport, Retry
from idempotency.client.aiohttp import idempotency_middleware
from idempotency.client.requests import IdempotencyAdapter

CLIENTS = ["httpx", "httpx-async", "httpx-trio", "httpx2", "httpx2-async", "requests", "aiohttp"]


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]  # names in lower case
    content: bytes


class HTTPClient:
    """
    One library.

    Attributes:
        pauses: Seconds of each pause between attempts; no time passes.
        timeout_error: Raised when the deadline of a call is over.
        request_error: Raised for a redirect to another origin, and the base of all errors of the library.
        connect_error: Raised when no connection can be made.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.pauses: list[float] = []
        self.while_pausing: Callable[[], None] = lambda: None
        module, _, kind = name.partition("-")
        self.is_async = kind in {"async", "trio"} or module == "aiohttp"
        library: Any = {"httpx": httpx, "httpx2": httpx2, "requests": requests, "aiohttp": aiohttp}[module]
        self.library = library
        self.timeout_error, self.request_error, self.connect_error = {
            "requests": lambda: (
                requests.ReadTimeout,
                requests.exceptions.RequestException,
                requests.ConnectionError,
            ),
            "aiohttp": lambda: (
                aiohttp.ServerTimeoutError,
                aiohttp.ClientError,
                aiohttp.ClientConnectorError,
            ),
        }.get(module, lambda: (library.ReadTimeout, library.RequestError, library.ConnectError))()

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.while_pausing()

    async def _pause_later(self, seconds: float) -> None:
        self._pause(seconds)

    async def call(
        self,
        method: str,
        url: str,
        *,
        body: Any = None,
        headers: Any = None,
        follow: bool = False,
        stream: bool = False,
        read_timeout: float | None = None,
        retry: Retry | None = None,
        **settings: Any,
    ) -> Reply:
        """One call by a new client, and its whole response; *stream* reads the response in chunks."""
        given = {"chance": lambda: 0.5, "retry": retry or Retry()} | settings
        given["sleep"] = self._pause_later if self.is_async else self._pause
        arguments = (method, url, body, headers, follow, stream, read_timeout, given)
        if self.name == "requests":
            return await asyncio.to_thread(self._by_requests, *arguments)
        if self.name == "aiohttp":
            return await self._by_aiohttp(*arguments)
        if self.is_async:
            return await self._by_async_httpx(*arguments)
        return await asyncio.to_thread(self._by_httpx, *arguments)

    def _by_httpx(self, method, url, body, headers, follow, stream, read_timeout, given) -> Reply:  # type: ignore[no-untyped-def]
        transport = IdempotencyTransport(self.library.HTTPTransport(verify=False), **given)
        with (
            self.library.Client(
                transport=transport, timeout=read_timeout, follow_redirects=follow, trust_env=False
            ) as client,
            client.stream(method, url, content=body, headers=headers) as answer,
        ):
            content = b"".join(answer.iter_bytes()) if stream else answer.read()
            return Reply(answer.status_code, dict(answer.headers), content)

    async def _by_async_httpx(self, method, url, body, headers, follow, stream, read_timeout, given) -> Reply:  # type: ignore[no-untyped-def]
        transport = AsyncIdempotencyTransport(self.library.AsyncHTTPTransport(verify=False), **given)
        async with (
            self.library.AsyncClient(
                transport=transport, timeout=read_timeout, follow_redirects=follow, trust_env=False
            ) as client,
            client.stream(method, url, content=body, headers=headers) as answer,
        ):
            chunks = [chunk async for chunk in answer.aiter_bytes()] if stream else [await answer.aread()]
            return Reply(answer.status_code, dict(answer.headers), b"".join(chunks))

    def _by_requests(self, method, url, body, headers, follow, stream, read_timeout, given) -> Reply:  # type: ignore[no-untyped-def]
        with requests.Session() as session:
            session.trust_env = False
            IdempotencyAdapter(**given).mount_on(session)
            with session.request(
                method,
                url,
                data=body,
                headers=headers,
                allow_redirects=follow,
                stream=stream,
                timeout=read_timeout,
            ) as answer:
                content = b"".join(answer.iter_content(65_536)) if stream else answer.content
                lower = {name.lower(): value for name, value in answer.headers.items()}
                return Reply(answer.status_code, lower, content)

    async def _by_aiohttp(self, method, url, body, headers, follow, stream, read_timeout, given) -> Reply:  # type: ignore[no-untyped-def]
        timeout = aiohttp.ClientTimeout(total=None, sock_read=read_timeout)
        middlewares = [idempotency_middleware(**given)]
        async with (
            aiohttp.ClientSession(middlewares=middlewares, timeout=timeout) as session,
            session.request(method, url, data=body, headers=headers, allow_redirects=follow) as answer,
        ):
            if stream:
                content = b"".join([chunk async for chunk in answer.content.iter_any()])
            else:
                content = await answer.read()
            lower = {name.lower(): value for name, value in answer.headers.items()}
            return Reply(answer.status, lower, content)
