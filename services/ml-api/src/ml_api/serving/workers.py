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
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
            links = await self._links()
            try:
                answers = await asyncio.gather(*(link.ask("prepare", name, copy) for link in links))
                if objections := [answer["error"] for answer in answers if "error" in answer]:
                    raise SwapRefused(
                        objections[0]
                    )  # the links close, and everybody drops what was made ready
                self._pointer.write(name, copy)
                await asyncio.gather(*(link.ask("follow", name, copy) for link in links))
            finally:
                for link in links:
                    link.close()
            return await self._versions(name, copy)

    async def _versions(self, name: str, copy: Path) -> list[WorkerVersion]:
        """Ask again everybody who is there now: a worker that was just starting follows, too."""
        links = await self._links()
        try:
            answers = await asyncio.gather(*(link.ask("follow", name, copy) for link in links))
        finally:
            for link in links:
                link.close()
        return [WorkerVersion(answer["pid"], answer["version"]) for answer in answers if "version" in answer]

    async def _links(self) -> list[_Link]:
        links = []
        for path in sorted(self._directory.glob("*.sock")):
            try:
                links.append(_Link(*await asyncio.open_unix_connection(path)))
            except OSError:
                path.unlink(missing_ok=True)  # its worker died
        return links

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


class _Link:
    """A connection to one worker; what it does not answer in time counts as an objection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, step: str, name: str, copy: Path) -> dict[str, Any]:
        self._writer.write(json.dumps({"step": step, "name": name, "copy": str(copy)}).encode() + b"\n")
        try:
            async with asyncio.timeout(_STEP_SECONDS):
                await self._writer.drain()
                line = await self._reader.readline()
        except (ConnectionError, TimeoutError):
            line = b""
        answer: dict[str, Any] = json.loads(line) if line else {"error": "a worker did not answer; try again"}
        return answer

    def close(self) -> None:
        self._writer.close()
