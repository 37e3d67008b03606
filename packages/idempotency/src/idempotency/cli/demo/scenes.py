"""The five orders: the fault of each one, and the client's retry at the other worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from idempotency.cli.demo.fleet import Answer, DemoFailed, Request, Worker
from idempotency.cli.demo.setups import AFTER_COMMIT, BEFORE_COMMIT, BEGUN

__all__ = ["SCENES", "Scene", "Shown"]

Shown = Callable[[str, str], None]
"""Called after each attempt with the worker's name and the result."""


@dataclass(frozen=True, slots=True)
class Scene:
    """
    One order.

    Attributes:
        play: Sends the requests, reports each attempt, and returns the client's last answer.
    """

    order: str
    title: str
    play: Callable[[str, Worker, Worker, Shown], Answer]


def _nothing(order: str, first: Worker, second: Worker, show: Shown) -> Answer:  # noqa: ARG001 - no retry
    return _ask(first, order, show)


def _lost_answer(order: str, first: Worker, second: Worker, show: Shown) -> Answer:
    with Request(first, order) as attempt:
        attempt.lose_answer()
    show(first.name, "lost")
    return _ask(second, order, show)


def _twice_at_once(order: str, first: Worker, second: Worker, show: Shown) -> Answer:
    with Request(first, order, stop=BEGUN) as attempt:
        first.wait_for(BEGUN)
        with Request(second, order) as duplicate:
            second.wait_for("received")  # while the first one still runs
            first.go_on()
            show(first.name, _summary(attempt.answer()))
            answer = duplicate.answer()
    show(second.name, _summary(answer))
    return answer


def _killed(stop: str) -> Callable[[str, Worker, Worker, Shown], Answer]:
    def play(order: str, first: Worker, second: Worker, show: Shown) -> Answer:
        with Request(first, order, stop=stop) as attempt:
            first.wait_for(stop)
            first.kill_and_replace()
            if attempt.answer().status is not None:
                raise DemoFailed("a killed worker answered")
        show(first.name, "kill -9")
        return _ask(second, order, show)

    return play


def _ask(worker: Worker, order: str, show: Shown) -> Answer:
    with Request(worker, order) as attempt:
        answer = attempt.answer()
    if answer.status is None:
        raise DemoFailed(f"worker {worker.name} ended although nobody killed it")
    show(worker.name, _summary(answer))
    return answer


def _summary(answer: Answer) -> str:
    extra = " replay" if answer.replayed else f" {answer.problem}" if answer.problem else ""
    return f"{answer.status}{extra}"


SCENES: Final = (
    Scene("order-1", "nothing goes wrong", _nothing),
    Scene("order-2", "the answer is lost", _lost_answer),
    Scene("order-3", "sent twice at once", _twice_at_once),
    Scene("order-4", "killed before the commit", _killed(BEFORE_COMMIT)),
    Scene("order-5", "killed after the commit", _killed(AFTER_COMMIT)),
)
