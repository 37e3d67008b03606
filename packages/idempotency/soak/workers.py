"""
Worker processes forked from this one, which has imported everything: a death costs milliseconds.

They are killed, frozen past their lease and asked to stop, at random and by their own hand (`faults`), and replaced.
Each has a listening socket that stays open here, so that a client waits for the next worker instead of being refused.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import socket
import time
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import uvicorn
from faults import Board
from journal import Journal

__all__ = ["Workers", "fork", "serve"]

Main = Callable[[socket.socket, random.Random], Coroutine[Any, Any, None]]

_TICK = 0.003  # s between looks at the children
_GRACE = 15.0  # s for requests under way when a worker is asked to stop


def fork(main: Callable[[], None]) -> int:
    """Run *main* in a child of its own; the child's process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        main()
        code = 0
    except BaseException:  # the child must never return into the parent's frames
        traceback.print_exc()
    finally:
        os._exit(code)


@dataclass
class _Worker:
    number: int
    listener: socket.socket
    pid: int = 0
    incarnation: int = 0
    thaw_at: float | None = None


class Workers:
    """
    The workers, and who harms them.

    Args:
        main: Serves on a socket until it is asked to stop; called in each child.
        harm_every: Mean seconds between two random harms, each to one worker.
        freezes: Whether there are freezes among them.
    Attributes:
        shots, stops, drains: How many were killed, frozen and asked to stop at random.
        crashes: How many ended by themselves: each is a mistake.
    """

    def __init__(
        self,
        main: Main,
        *,
        count: int,
        lease: float,
        harm_every: float,
        freezes: bool,
        seed: int,
        board: Board,
        journal: Journal,
    ) -> None:
        self._main = main
        self._lease = lease
        self._harm_every = harm_every
        self._harms = ("shoot", "stop", "drain") if freezes else ("shoot", "drain")
        self._seed = seed
        self._chance = random.Random(f"{seed} workers")
        self._board = board
        self._journal = journal
        self._workers = []
        for number in range(count):
            listener = socket.create_server(("127.0.0.1", 0), backlog=512)
            listener.setblocking(False)
            self._workers.append(_Worker(number, listener))
        self.shots = self.stops = self.drains = self.crashes = 0

    @property
    def ports(self) -> list[int]:
        """One for each worker, for the whole run."""
        return [worker.listener.getsockname()[1] for worker in self._workers]

    def run_until_exit_of(self, client: int) -> bool:
        """Replace, harm and thaw until the process *client* is over; whether it ended well."""
        gc.collect()
        gc.freeze()  # the children share these pages
        for worker in self._workers:
            self._start(worker)
        harm_at = self._next_harm()
        try:
            while True:
                ended, status = os.waitpid(client, os.WNOHANG)
                if ended:
                    return os.waitstatus_to_exitcode(status) == 0
                for worker in self._workers:
                    self._look_after(worker)
                if time.monotonic() >= harm_at and not self._board.calm:
                    self._harm(self._chance.choice(self._workers))
                    harm_at = self._next_harm()
                time.sleep(_TICK)
        finally:
            self._stop_all()

    def _start(self, worker: _Worker) -> None:
        worker.incarnation += 1
        worker.thaw_at = None
        chance = random.Random(f"{self._seed} worker {worker.number}.{worker.incarnation}")
        worker.pid = fork(lambda: asyncio.run(self._main(worker.listener, chance)))

    def _look_after(self, worker: _Worker) -> None:
        ended, status = os.waitpid(worker.pid, os.WNOHANG | os.WUNTRACED)
        if ended and os.WIFSTOPPED(status):
            worker.thaw_at = time.monotonic() + self._lease * self._chance.uniform(1.2, 2.5)
        elif ended:
            if os.waitstatus_to_exitcode(status) not in {-signal.SIGKILL, -signal.SIGTERM, 0}:
                self.crashes += 1
            self._journal.write("ended", worker=worker.pid, code=os.waitstatus_to_exitcode(status))
            self._start(worker)
        elif worker.thaw_at is not None and (time.monotonic() >= worker.thaw_at or self._board.calm):
            worker.thaw_at = None
            os.kill(worker.pid, signal.SIGCONT)
            self._journal.write("thawed", worker=worker.pid)

    def _harm(self, worker: _Worker) -> None:
        harm = self._chance.choice(self._harms)
        if harm == "shoot":
            self.shots += 1
            os.kill(worker.pid, signal.SIGKILL)
        elif harm == "stop":
            self.stops += 1
            os.kill(worker.pid, signal.SIGSTOP)
        else:
            self.drains += 1
            os.kill(worker.pid, signal.SIGTERM)

    def _next_harm(self) -> float:
        return time.monotonic() + self._chance.expovariate(1 / self._harm_every)

    def _stop_all(self) -> None:
        deadline = time.monotonic() + _GRACE
        for worker in self._workers:
            os.kill(worker.pid, signal.SIGCONT)
            os.kill(worker.pid, signal.SIGTERM)
        for worker in self._workers:
            while os.waitpid(worker.pid, os.WNOHANG) == (0, 0):
                if time.monotonic() > deadline:
                    os.kill(worker.pid, signal.SIGKILL)
                time.sleep(_TICK)
            worker.listener.close()


async def serve(app: object, listener: socket.socket) -> None:
    """Serve *app* until SIGTERM; requests under way are answered first."""
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http="httptools",
        loop="asyncio",
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(_GRACE),
    )
    await uvicorn.Server(config).serve(sockets=[listener])
