"""The recorder makes the state transitions of docs/recorder-states.md, each in the method named there, and no other."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from asgi_driver import RequestDriver, http_scope, key_header
from effects import guard, respond
from patience import PATIENCE

from idempotency import Acquired, Fingerprint, StorageKey
from idempotency._core.outcome import Response, encode_response
from idempotency.asgi.recorder import ResponseRecorder
from idempotency.asgi.states import TRANSITIONS, State
from idempotency.engine.owner import new_owner
from idempotency.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

KEY = StorageKey("k")
STORE = MemoryStore()
Step = tuple[State, State, str]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Step]]:
    """The state transitions that recorders make, and the method of each."""
    taken: list[Step] = []
    slot = ResponseRecorder.__dict__["_state"]

    def step(recorder: ResponseRecorder, state: State) -> None:
        method = sys._getframe(1).f_code.co_name
        if method != "__init__":
            taken.append((slot.__get__(recorder), state, method))
        slot.__set__(recorder, state)

    monkeypatch.setattr(ResponseRecorder, "_state", property(slot.__get__, step))
    yield taken
    assert set(taken) <= {step[:3] for step in TRANSITIONS}


async def answer(send: Any) -> None:
    await respond(send, b"ours")


async def stream(send: Any) -> None:
    await respond(send, b"data: 1", headers=[(b"content-type", b"text/event-stream")])


async def lose_claim(send: Any) -> None:
    """Respond after another request has taken the key over and recorded its response."""
    found = await STORE.get(KEY)
    assert found is not None
    await STORE.forget(KEY)
    reply = await STORE.acquire(
        KEY, fingerprint=Fingerprint(found.fingerprint), owner=new_owner(), lease=30, retention=60
    )
    assert isinstance(reply, Acquired)
    assert await STORE.complete(reply.claim, encode_response(Response(201, [], b"theirs")), retention=60)
    await respond(send, b"ours")


async def fail(send: Any) -> None:
    raise ConnectionError


async def answer_and_fail(send: Any) -> None:
    await respond(send, b"ours")
    raise ConnectionError


async def begin(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


B, W, R, FAILED, FORWARDING, D = State
SCENARIOS: list[tuple[Any, str, list[State]]] = [
    (answer, "answer", [B, R, FORWARDING]),
    (answer, "return", [B, W, R, FORWARDING]),
    (stream, "answer", [B, R, FORWARDING]),
    (lose_claim, "answer", [B, R, D]),
    (lose_claim, "return", [B, W, R, D]),
    (fail, "answer", [B, FAILED]),
    (answer_and_fail, "answer", [B, R, FORWARDING]),
    (answer_and_fail, "return", [B, W, FAILED]),
    (begin, "answer", [B, FAILED, FORWARDING]),
]


@pytest.mark.parametrize(("act", "record", "path"), SCENARIOS)
async def test_response_takes_the_documented_state_transitions(
    steps: list[Step], act: Any, record: str, path: list[State]
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await act(send)

    await STORE.forget(KEY)
    driver = RequestDriver(guard(app, STORE, record=record), http_scope(headers=key_header("k")))
    driver.send_body(b"{}")
    with anyio.fail_after(PATIENCE):
        try:
            await driver.run()
        except ConnectionError:
            assert act in {fail, answer_and_fail}
    assert [before for before, _, _ in steps] + [steps[-1][1]] == path


def test_scenarios_cover_every_documented_state_transition() -> None:
    walked = {pair for _, _, path in SCENARIOS for pair in itertools.pairwise(path)}
    assert walked == {(step.before, step.after) for step in TRANSITIONS}
