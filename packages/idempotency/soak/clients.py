"""
Clients over real sockets, each sending its request again under the same key until it has a final answer.

Among them: duplicates on two workers at once, strangers with another body under a used key, tenants who share a
key's text, clients that hang up, and in the end, once all is calm, a replay of everything.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from faults import Board
from wire import Response, Wire, request

__all__ = ["Answer", "Clients", "Operation", "Seen", "Traffic", "load"]

_UNMARKED = (b"date", b"connection", b"server")  # of one message, not of the answer
# Seconds between two tries: far fewer than Retry-After asks for, so that more of them meet a fault. After a 503 more,
# or many clients would hold a store down that has only been slow.
_PAUSE, _LONGER_PAUSE = (0.005, 0.05), (0.1, 0.4)


@dataclass
class Answer:
    """
    One final answer, as it came.

    Attributes:
        digest: Of status, kept headers and body: equal where the answers are byte for byte the same.
        effect: The name of the effect that it claims, "" where it is no success.
        marked: Whether it says that it was recorded or replayed; only those must agree (I3).
        late: Whether it was asked for in the calm at the end.
    """

    status: int
    problem: str
    digest: str
    effect: str
    marked: bool
    replayed: bool
    late: bool


@dataclass
class Operation:
    """
    One key of one tenant, and all that its clients were told.

    Attributes:
        seconds: From the first try of each client to its final answer.
        stuck: How many clients were told nothing final in time.
        unexpected: What should not have come, as "status problem".
    """

    tenant: str
    key: str
    answers: list[Answer] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    stuck: int = 0
    unexpected: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Traffic:
    """
    How much is sent, and how.

    Attributes:
        requests: Go on until so many were sent, and until every step has had its kills.
        kills: The fewest kills at each step.
        seconds: Begin nothing new after so long.
        slow: The share of operations that take about a lease.
        at_once: Operations under way at a time.
        patience: Seconds after which a client without a final answer counts as stuck.
    """

    requests: int
    kills: int
    seconds: float
    lease: float
    seed: int
    slow: float
    at_once: int
    patience: float = 30.0
    duplicates: float = 0.15
    strangers: float = 0.05
    hang_ups: float = 0.05


class Clients:
    """All clients of a run; one process, one event loop."""

    def __init__(self, traffic: Traffic, ports: list[int], board: Board) -> None:
        self._traffic = traffic
        self._ports = ports
        self._board = board
        self._chance = random.Random(f"{traffic.seed} clients")
        self.operations: list[Operation] = []
        self.requests = 0

    async def run(self) -> None:
        """Send until there was enough of everything; then, in the calm, ask for every answer again."""
        end = time.monotonic() + self._traffic.seconds

        async def send_operations() -> None:
            while time.monotonic() < end and not self._enough():
                await self._operate()

        async with asyncio.TaskGroup() as senders:
            for _ in range(self._traffic.at_once):
                senders.create_task(send_operations())
        self._board.calm_down()
        # Frozen workers thaw at once, and do what they were about to.
        await asyncio.sleep(2 * self._traffic.lease)
        left = list(self.operations)

        async def replay_operations() -> None:
            while left:
                number = len(left) - 1
                await self._until_final(left.pop(), self._request(number), late=True)

        async with asyncio.TaskGroup() as senders:
            for _ in range(self._traffic.at_once):
                senders.create_task(replay_operations())

    def _enough(self) -> bool:
        return self.requests >= self._traffic.requests and all(
            kills >= self._traffic.kills for kills in self._board.kills.values()
        )

    async def _operate(self) -> None:
        traffic, chance = self._traffic, self._chance
        number = len(self.operations)
        # Two tenants share each key's text: what one is told must never be the other's (I8).
        operation = Operation(tenant=f"tenant-{number % 2}", key=f"order-{number // 2}")
        self.operations.append(operation)
        body = self._request(number)
        if chance.random() < traffic.hang_ups:
            await self._hang_up(operation, body)
        duplicates = chance.choice([2, 2, 3]) if chance.random() < traffic.duplicates else 1
        await asyncio.gather(*[self._until_final(operation, body) for _ in range(duplicates)])
        # Not after an unknown outcome: a claim that nobody heard of is released, and then the key is anybody's.
        answered = any(answer.status == 201 for answer in operation.answers)
        if chance.random() < traffic.strangers and answered:
            await self._be_a_stranger(operation)

    def _request(self, number: int) -> bytes:
        """What an operation's clients send: the same bytes on every try, and for the replay at the end."""
        chance = random.Random(f"{self._traffic.seed} {number}")
        is_slow = chance.random() < self._traffic.slow
        seconds = chance.uniform(0.4, 1.3) * self._traffic.lease if is_slow else chance.uniform(0.0, 0.004)
        text = chance.randbytes(8).hex() * chance.randrange(100)
        return json.dumps({"operation": number, "seconds": seconds, "text": text}).encode()

    async def _until_final(self, operation: Operation, body: bytes, *, late: bool = False) -> None:
        began = time.monotonic()
        while time.monotonic() < began + self._traffic.patience:
            response = await self._try(operation, body, self._chance.choice(self._ports))
            if response is not None:
                problem = _problem(response)
                if response.status == 201 or problem == "outcome-unknown":
                    operation.answers.append(_answer(response, problem, late=late))
                    break
                if (response.status, problem) not in {
                    (409, "in-progress"),
                    (503, "store-unavailable"),
                    (503, ""),
                }:
                    operation.unexpected.append(f"{response.status} {problem}")
                    break
            is_down = response is not None and response.status == 503
            await asyncio.sleep(self._chance.uniform(*(_LONGER_PAUSE if is_down else _PAUSE)))
        else:
            operation.stuck += 1
        if not late:
            operation.seconds.append(time.monotonic() - began)

    async def _be_a_stranger(self, operation: Operation) -> None:
        """Another body under a used key must be refused, whatever else is told (I7)."""
        for _ in range(100):
            response = await self._try(operation, b'{"another": "body"}', self._chance.choice(self._ports))
            if response is not None and response.status != 503:
                if (response.status, _problem(response)) != (422, "key-reused"):
                    operation.unexpected.append(f"{response.status} to a stranger")
                return
            await asyncio.sleep(self._chance.uniform(*_PAUSE))

    async def _hang_up(self, operation: Operation, body: bytes) -> None:
        """Send the request and leave before, while or after it is served (I12)."""
        self.requests += 1
        try:
            async with await Wire.connect(self._chance.choice(self._ports)) as wire:
                await wire.send(self._bytes(operation, body))
                await asyncio.sleep(self._chance.uniform(0.0, 0.005))
                wire.reset()
        except OSError:
            return

    async def _try(self, operation: Operation, body: bytes, port: int) -> Response | None:
        """The answer, or None where none came: the worker died, or is frozen."""
        self.requests += 1
        try:
            async with asyncio.timeout(2.5 * self._traffic.lease), await Wire.connect(port) as wire:
                await wire.send(self._bytes(operation, body))
                return await wire.response()
        except (OSError, EOFError, TimeoutError):
            return None

    def _bytes(self, operation: Operation, body: bytes) -> bytes:
        headers = [("authorization", operation.tenant), ("connection", "close")]
        if self._chance.random() < 0.3:
            headers.append(("prefer", "wait=1"))
        return request("/orders", operation.key, body, headers=headers)

    def save(self, path: Path, **more: int) -> None:
        """Leave what was seen to the process that judges it."""
        seen = {"requests": self.requests, "operations": list(map(asdict, self.operations))}
        path.write_text(json.dumps(seen | more))


class Seen(NamedTuple):
    """What the process of the clients left."""

    requests: int
    operations: list[Operation]
    looks: int
    torn: int


def load(path: Path) -> Seen:
    """What `Clients.save` wrote."""
    saved = json.loads(path.read_text())
    saved["operations"] = [
        Operation(**one | {"answers": [Answer(**answer) for answer in one["answers"]]})
        for one in saved["operations"]
    ]
    return Seen(**saved)


def _problem(response: Response) -> str:
    if response.values("content-type") != [b"application/problem+json"]:
        return ""
    return str(json.loads(response.body)["type"]).rpartition("/")[2].rpartition(":")[2]


def _answer(response: Response, problem: str, *, late: bool) -> Answer:
    kept = [(name, value) for name, value in response.headers if _is_kept(name)]
    digest = hashlib.sha256(repr((response.status, kept, response.body)).encode()).hexdigest()[:16]
    return Answer(
        status=response.status,
        problem=problem,
        digest=digest,
        effect=json.loads(response.body)["effect"] if response.status == 201 else "",
        marked=response.replayed or bool(response.values("idempotency-expires-in")),
        replayed=response.replayed,
        late=late,
    )


def _is_kept(name: bytes) -> bool:
    return name not in _UNMARKED and not name.startswith(b"idempotency-")
