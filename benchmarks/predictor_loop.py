"""One event loop that predicts row by row: inline, against the batcher."""

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
    """Closed loop: each of *clients* coroutines asks for its next row when it has its answer."""
    count = 6_000

    async def client(offset: int) -> None:
        for step in range(count // clients):
            await predict(rows[(offset + step) % len(rows)])

    start = perf_counter()
    await asyncio.gather(*(client(index * 61) for index in range(clients)))
    return count / (perf_counter() - start)


def batching(model: Model, rows: NDArray[np.float64]) -> None:
    """Print requests a second of one event loop: inline against the batcher."""
    lists = rows.tolist()

    async def inline(row: list[float]) -> Any:
        await asyncio.sleep(0)  # what a request handler does between rows
        return model.predict_row(row)

    print("  one event loop, requests a second")
    for clients in (1, 64):
        rates: dict[str, list[float]] = {"inline": [], "Batcher": [], "Batcher, 1 ms": []}
        for _ in range(5):
            for name, wait in (("inline", None), ("Batcher", 0.0), ("Batcher, 1 ms", 0.001)):
                if wait and clients == 1:
                    continue  # a lone client waits its millisecond out: a thousand a second, by arithmetic
                call = inline if wait is None else Batcher(ModelSlot(model), max_wait=wait).predict
                rates[name].append(asyncio.run(requests_per_second(call, lists, clients=clients)))
        medians = (f"{name} {np.median(values):8.0f}" for name, values in rates.items() if values)
        print(f"    {clients:>3} clients   " + "   ".join(medians))
