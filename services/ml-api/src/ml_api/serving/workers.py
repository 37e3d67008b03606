"""
The workers of one service. They communicate by Unix sockets, one per worker, in a shared directory.

A connection carries one proposal: the line `prepare`, its answer, the line `follow`, its answer. If the connection ends
in between, the worker reads the pointer, which says whether the swap happened.
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

_STEP_SECONDS = 60.0  # time for one answer of a worker, which may load a large model on a busy machine


class SwapBusy(Exception):
    """Another swap is running."""


@dataclass(frozen=True, slots=True)
class WorkerVersion:
    """A worker, by its process id, and the version that it serves."""

    pid: int
    version: str


class WorkerGroup:
    """
    One worker as a member of its group.

    Args:
        directory: The shared directory; it must exist, and only this user may have access to it.
        own: This worker's part in a swap.
        timeout: Seconds for loading and checking a proposed model.
    """

    def __init__(self, directory: Path, own: Participant, *, timeout: float = 60.0) -> None:
        self._directory, self._own, self._pointer = directory, own, Pointer(directory)
        self._timeout = timeout

    @contextlib.asynccontextmanager
    async def joined(self) -> AsyncIterator[None]:
        """Answer the other workers, and serve the models that were swapped before this worker started."""
        path = self._directory / f"{os.getpid()}.sock"
        server = await asyncio.start_unix_server(self._answer, path)
        try:
            # After the socket is there: a coordinator that did not see it either wrote the pointer before this reads
            # it, or looks for new workers after this.
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
            The version that each worker serves afterwards.
        Raises:
            SwapRefused: No worker serves it; the message is the reason of one of them.
            SwapBusy: Another swap is running; try again.
        """
        with self._alone():
            try:
                async with asyncio.timeout(self._timeout):
                    model = await self._own.examine(name, file, sha256, other_signature=other_signature)
            except TimeoutError:
                raise SwapRefused(
                    f"loading it took longer than {self._timeout:g} s; raise ML_SERVICE_ADMIN_TIMEOUT"
                ) from None
            copy = self._pointer.keep(model)
            async with self._links() as links:
                answers = await _ask(links, "prepare", name, copy)
                if objections := [answer for answer in answers if "error" in answer]:
                    # When the connections close, every worker drops the model that it has prepared.
                    raise SwapRefused(objections[0]["error"], objections[0].get("details", ""))
                self._pointer.write(name, copy)
                await _ask(links, "follow", name, copy)
            # Again for all workers that exist now, so that one which was just starting follows, too.
            async with self._links() as links:
                answers = await _ask(links, "follow", name, copy)
        return [WorkerVersion(answer["pid"], answer["version"]) for answer in answers if "version" in answer]

    @contextlib.asynccontextmanager
    async def _links(self) -> AsyncIterator[list[_Link]]:
        """Connect to every worker; the connections close at the end."""
        links: list[_Link] = []
        try:
            for path in sorted(self._directory.glob("*.sock")):
                try:
                    links.append(await asyncio.open_unix_connection(path))
                except OSError:
                    path.unlink(missing_ok=True)  # the worker of this socket died
            yield links
        finally:
            for _, writer in links:
                writer.close()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        import fcntl  # here, because Windows does not have it; without an admin key it is not needed

        with (self._directory / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SwapBusy from None
            yield  # the lock ends with the file, also if the process dies

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
            return {"error": str(error), "details": error.details}
        return {"pid": os.getpid(), "version": self._own.version(name)}


_Link: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
"""A connection to one worker."""


async def _ask(links: Iterable[_Link], step: str, name: str, copy: Path) -> list[dict[str, Any]]:
    """Return the answers of all workers; no answer in time counts as an error."""
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
