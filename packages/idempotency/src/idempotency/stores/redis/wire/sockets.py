"""A pool of blocking connections to one node; only one thread at a time uses a connection."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from redis import exceptions as failures

from idempotency._runtime.fork import forget_in_child
from idempotency.stores.redis.errors import NeverSent, is_gone
from idempotency.stores.redis.records import Answer, Command, pack
from idempotency.stores.redis.settings import Settings, judge_eviction, wait_command

__all__ = ["Sockets"]


class Sockets:
    """Blocking connections to one place; only one thread at a time uses a connection."""

    def __init__(self, connect: Callable[[], Any], settings: Settings) -> None:
        self._connect = connect
        self._settings = settings
        self._idle: list[Any] = []
        self._closed = False
        self._may_evict: bool | None = None
        self._loads: dict[bytes, int] = {}  # how often each script was found on the server, or sent there
        self._loading: dict[bytes, threading.Lock] = {}
        forget_in_child(self, Sockets._forget_parents)

    def send(self, command: Command, end: float, *, asking: bool) -> Answer:
        """The answer to *command*, or the driver's exception; not later than *end* (monotonic seconds)."""
        connection = self._take()
        try:
            self._open(connection)
            if self._may_evict is None:
                info = self._ask(connection, [pack(b"INFO", b"memory")], end)[0]
                self._may_evict = judge_eviction(info, self._settings.on_eviction)
            answer = self._run_script(connection, command, end, asking=asking)
        except BaseException:
            connection.disconnect()
            self._drop_idle()  # the idle connections lead to the same server, which has just failed
            raise
        self._idle.append(connection)
        if self._closed:  # closed during the call
            self._drop_idle()
        if isinstance(answer.reply, Exception):
            raise answer.reply
        return answer

    def close(self) -> None:
        """Close every connection; a connection in use is closed after its call."""
        self._closed = True
        self._drop_idle()

    def _drop_idle(self) -> None:
        with contextlib.suppress(IndexError):  # another thread may take the last one
            while True:
                self._idle.pop().disconnect()

    def _take(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect()

    def _open(self, connection: Any) -> None:
        try:
            connection.connect()  # does nothing if it is open
        except failures.ConnectionError as error:
            if not is_gone(error):
                raise
            raise NeverSent(*error.args) from error

    def _run_script(self, connection: Any, command: Command, end: float, *, asking: bool) -> Answer:
        """
        The answer to *command*; one thread sends a script that the server lacks, and the others wait for it.

        A thread that has waited for half of its time goes on alone, because the other thread may be stuck.
        """
        script = command.script
        if script is None:
            return self._run(connection, command, end, asking=asking, with_text=False)
        loads = self._loads.get(script.sha, 0)
        missing = False
        if loads:
            answer = self._run(connection, command, end, asking=asking, with_text=False)
            missing = isinstance(answer.reply, failures.NoScriptError)
            if not missing:
                return answer
        loading = self._loading.setdefault(script.sha, threading.Lock())
        mine = loading.acquire(timeout=max(0.0, (end - time.monotonic()) / 2))
        try:
            if self._loads.get(script.sha, 0) == loads:  # no other thread has found or sent the script since
                answer = self._run(connection, command, end, asking=asking, with_text=missing)
                if isinstance(answer.reply, failures.NoScriptError):
                    answer = self._run(connection, command, end, asking=asking, with_text=True)
                if not isinstance(answer.reply, Exception):
                    self._loads[script.sha] = loads + 1
                return answer
        finally:
            if mine:
                loading.release()
        answer = self._run(connection, command, end, asking=asking, with_text=False)
        if isinstance(answer.reply, failures.NoScriptError):
            answer = self._run(connection, command, end, asking=asking, with_text=True)
        return answer

    def _forget_parents(self) -> None:
        """Called in a forked child, where the driver closes only the child's copies of the parent's sockets."""
        self._drop_idle()
        self._loading = {}  # no thread of the child would release a lock that was held

    def _run(self, connection: Any, command: Command, end: float, *, asking: bool, with_text: bool) -> Answer:
        confirm = self._settings.replicas > 0 and command.writes
        packed = [command.pack(with_text=with_text)]
        if asking:
            packed.insert(0, pack(b"ASKING"))
        if confirm:  # WAIT covers only the writes of its own connection
            packed.append(wait_command(self._settings))
        replies = self._ask(connection, packed, end)
        return Answer(replies[int(asking)], replies[-1] if confirm else 0)

    def _ask(self, connection: Any, packed: list[bytes], end: float) -> list[Any]:
        connection.send_packed_command([b"".join(packed)], check_health=False)
        replies: list[Any] = []
        for _ in packed:
            if not connection.can_read(timeout=max(0.0, end - time.monotonic())):
                raise failures.TimeoutError("no reply within the deadline")
            try:
                replies.append(connection.read_response())
            except failures.ReadOnlyError:
                raise  # no longer a primary: the connection is useless
            except failures.ResponseError as error:
                replies.append(error)
        return replies
