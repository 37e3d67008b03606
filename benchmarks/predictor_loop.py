"""Compares predictions on one event loop: each row inline, or through the batcher."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor import Batcher, Model, ModelSlot

__all__ = ["batching"]


async def requests_per_second(
    predict: Callable[[Any], Any], rows: list[list[float]], *, clients: int
) -> float:
    """Return requests per second in a closed loop: each of *clients* coroutines sends its next row after an answer."""
    count = 6_000

    async def client(offset: int) -> None:
        for step in range(count // clients):
            await predict(rows[(offset + step) % len(rows)])

    start = perf_counter()
    await asyncio.gather(*(client(index * 61) for index in range(clients)))
    return count / (perf_counter() - start)


def batching(model: Model, rows: NDArray[np.float64]) -> None:
    """Print the requests per second of one event loop, inline and through the batcher."""
    lists = rows.tolist()

    async def inline(row: list[float]) -> Any:
        await asyncio.sleep(0)  # a request handler, too, gives control to the loop between rows
        return model.predict_row(row)

    print("  one event loop, requests a second")
    for clients in (1, 64):
        rates: dict[str, list[float]] = {"inline": [], "Batcher": [], "Batcher, 1 ms": []}
        for _ in range(5):
            for name, wait in (("inline", None), ("Batcher", 0.0), ("Batcher, 1 ms", 0.001)):
                if wait and clients == 1:
                    continue  # a single client waits 1 ms each time, so at most 1,000 requests per second
                call = inline if wait is None else Batcher(ModelSlot(model), max_wait=wait).predict
                rates[name].append(asyncio.run(requests_per_second(call, lists, clients=clients)))
        medians = (f"{name} {np.median(values):8.0f}" for name, values in rates.items() if values)
        print(f"    {clients:>3} clients   " + "   ".join(medians))
