"""
The workers of one service, talking to each other: a Unix socket each, in a directory that they share.

A link carries one proposal: the line `prepare`, its answer, the line `follow`, its answer. A link that ends in between
is an answer too: the worker then reads the pointer, which knows whether the swap happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ml_api.serving.swap import Participant, Pointer, SwapRefused

__all__ = ["WorkerGroup", "SwapBusy", "WorkerVersion"]

_STEP_SECONDS = 60.0  # for a worker to load a large model on a busy machine


class SwapBusy(Exception):
    """Another swap is under way."""


@dataclass(frozen=True, slots=True)
class WorkerVersion:
    """A worker, by its process id, and the version that it serves."""

    pid: int
    version: str


class WorkerGroup:
    """
    One worker among the others.

    Args:
        directory: Where the workers meet; it must exist, and belong to this user alone.
        own: This worker's part in a swap.
        timeout: Seconds that loading and checking a proposed model may take.
    """

    def __init__(self, directory: Path, own: Participant, *, timeout: float = 60.0) -> None:
        self._directory, self._own, self._pointer = directory, own, Pointer(directory)
        self._timeout = timeout

    @contextlib.asynccontextmanager
    async def joined(self) -> AsyncIterator[None]:
        """Answer the others, and serve what was chosen before this worker was there."""
        path = self._directory / f"{os.getpid()}.sock"
        server = await asyncio.start_unix_server(self._answer, path)
        try:
            # After the socket: a coordinator that did not see it had written the pointer before this reads it,
            # or looks for latecomers after this.
            await self._own.follow(self._pointer)
            yield
        finally:
            server.close()
            path.unlink(missing_ok=True)

    async def swap(
        self, name: str, file: str, sha256: str | None = None, *, other_signature: bool = False
    ) -> list[WorkerVersion]:
        """
        Serve the model *file* of the model directory under *name* in every worker.

        Args:
            sha256, other_signature: As `Participant.examine`.
        Returns:
            What each worker serves afterwards.
        Raises:
            SwapRefused: No worker serves it; the message is what one of them objected.
            SwapBusy: Another swap is under way; try again.
        """
        with self._alone():
            try:
                async with asyncio.timeout(self._timeout):
                    model = await self._own.examine(name, file, sha256, other_signature=other_signature)
            except TimeoutError:
                raise SwapRefused(f"loading it took longer than {self._timeout:g} s") from None
            copy = self._pointer.keep(model)
            async with self._links() as links:
                answers = await _ask(links, "prepare", name, copy)
                if objections := [answer["error"] for answer in answers if "error" in answer]:
                    # The links close, and everybody drops what was made ready.
                    raise SwapRefused(objections[0])
                self._pointer.write(name, copy)
                await _ask(links, "follow", name, copy)
            # Everybody who is there now: a worker that was just starting follows, too.
            async with self._links() as links:
                answers = await _ask(links, "follow", name, copy)
        return [WorkerVersion(answer["pid"], answer["version"]) for answer in answers if "version" in answer]

    @contextlib.asynccontextmanager
    async def _links(self) -> AsyncIterator[list[_Link]]:
        """A link to each worker that is there; they close at the end."""
        links: list[_Link] = []
        try:
            for path in sorted(self._directory.glob("*.sock")):
                try:
                    links.append(await asyncio.open_unix_connection(path))
                except OSError:
                    path.unlink(missing_ok=True)  # its worker died
            yield links
        finally:
            for _, writer in links:
                writer.close()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        import fcntl  # where Windows would stop: there is one worker there, and no admin route

        with (self._directory / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SwapBusy from None
            yield  # the lock ends with the file, also where the process dies

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                message = json.loads(line)
                writer.write(json.dumps(await self._act(**message)).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            await self._own.follow(self._pointer)
            writer.close()

    async def _act(self, step: str, name: str, copy: str) -> dict[str, object]:
        try:
            if step == "prepare":
                await self._own.prepare(name, Path(copy))
            else:
                await self._own.follow(self._pointer)
        except SwapRefused as error:
            return {"error": str(error)}
        return {"pid": os.getpid(), "version": self._own.version(name)}


_Link: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
"""A connection to one worker."""


async def _ask(links: Iterable[_Link], step: str, name: str, copy: Path) -> list[dict[str, Any]]:
    """The answers of all workers; what one does not answer in time counts as an objection."""
    question = json.dumps({"step": step, "name": name, "copy": str(copy)}).encode() + b"\n"

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> dict[str, Any]:
        writer.write(question)
        try:
            async with asyncio.timeout(_STEP_SECONDS):
                await writer.drain()
                line = await reader.readline()
        except (ConnectionError, TimeoutError):
            line = b""
        answer: dict[str, Any] = json.loads(line) if line else {"error": "a worker did not answer; try again"}
        return answer

    return await asyncio.gather(*(ask(*link) for link in links))
