"""A model swap among workers: all or none of them, with refusing, late, silent and dead workers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from patience import until

from ml_api.serving.model_files import ModelDirectory
from ml_api.serving.registry import BUNDLED_MODEL
from ml_api.serving.swap import Participant, SwapRefused
from ml_api.serving.workers import SwapBusy, WorkerGroup, WorkerVersion
from predictor import Manifest, Model, ModelSlot, manifest_path

pytestmark = pytest.mark.anyio

NAME = "btc-eth"


class Worker:
    """One worker: its slot, its recorded swaps, and its membership in the group."""

    def __init__(self, directory: Path, objection: str = "") -> None:
        def check(name: str, model: Model) -> None:
            if objection:
                raise SwapRefused(objection, "found in this worker")

        self.slot = ModelSlot(Model.load(BUNDLED_MODEL))
        self.swaps: list[tuple[str, str, str]] = []
        self.own = Participant(
            {NAME: self.slot},
            directory=ModelDirectory(directory.parent, 10_000_000),
            check=check,
            swapped=lambda *change: self.swaps.append(change),
        )
        self.peers = WorkerGroup(directory, self.own)

    @property
    def version(self) -> str:
        return self.slot.current.info.version


@pytest.fixture
def sockets(tmp_path: Path) -> Path:
    (tmp_path / "sockets").mkdir()
    return tmp_path / "sockets"


@pytest.fixture
def newer(tmp_path: Path) -> Callable[[str], str]:
    """A copy of the bundled model with another version."""

    def of(version: str) -> str:
        path = tmp_path / f"{version}.txt"
        shutil.copy(BUNDLED_MODEL, path)
        manifest = Manifest.read(manifest_path(BUNDLED_MODEL))
        manifest.model_copy(update={"version": version}).write(manifest_path(path))
        return path.name

    return of


@pytest.fixture(autouse=True)
def own_process_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every worker gets its own process id, though all run in this process."""
    ids = itertools.count(1)
    monkeypatch.setattr("ml_api.serving.workers.os.getpid", lambda: next(ids))


@contextlib.asynccontextmanager
async def joined(*workers: Worker) -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    async with contextlib.AsyncExitStack() as stack:
        for worker in workers:
            await stack.enter_async_context(worker.peers.joined())
        yield
        async with asyncio.timeout(30):
            # Until every connection between workers is closed.
            await until(lambda: asyncio.all_tasks() <= before)


async def test_all_workers_and_later_ones_serve_the_new_model(
    sockets: Path, newer: Callable[[str], str]
) -> None:
    first, second, late = (Worker(sockets) for _ in range(3))
    async with joined(first, second):
        told = await first.peers.swap(NAME, newer("2.0.0"))
        async with joined(late):
            assert [first.version, second.version, late.version] == ["2.0.0"] * 3
            again = await second.peers.swap(NAME, newer("3.0.0"))
    assert [worker.version for worker in told] == ["2.0.0"] * 2
    assert [worker.version for worker in again] == ["3.0.0"] * 3
    assert all(isinstance(worker, WorkerVersion) for worker in told)
    assert first.swaps == second.swaps == [(NAME, "1.0.0", "2.0.0"), (NAME, "2.0.0", "3.0.0")]
    assert not list(sockets.glob("*.sock"))


async def test_no_worker_swaps_if_one_refuses(sockets: Path, newer: Callable[[str], str]) -> None:
    willing, unwilling, late = Worker(sockets), Worker(sockets, "not here"), Worker(sockets)
    async with joined(willing, unwilling):
        with pytest.raises(SwapRefused, match=r"^not here$") as refused:
            await willing.peers.swap(NAME, newer("2.0.0"))
        assert refused.value.details == "found in this worker"
        async with joined(late):
            assert [willing.version, unwilling.version, late.version] == ["1.0.0"] * 3
    assert willing.swaps == []
    assert willing.own._ready == {}


async def test_no_worker_swaps_if_one_does_not_answer(
    sockets: Path, newer: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    monkeypatch.setattr("ml_api.serving.workers._STEP_SECONDS", 0.3)
    worker = Worker(sockets)
    async with joined(worker), await asyncio.start_unix_server(silent, sockets / "silent.sock"):
        with pytest.raises(SwapRefused, match="did not answer"):
            await worker.peers.swap(NAME, newer("2.0.0"))
    assert worker.version == "1.0.0"


async def test_the_socket_of_a_dead_worker_is_removed(sockets: Path, newer: Callable[[str], str]) -> None:
    (sockets / "dead.sock").touch()
    worker = Worker(sockets)
    async with joined(worker):
        assert [told.version for told in await worker.peers.swap(NAME, newer("2.0.0"))] == ["2.0.0"]
    assert not (sockets / "dead.sock").exists()


async def test_a_swap_during_another_swap_is_refused(sockets: Path, newer: Callable[[str], str]) -> None:
    first, second = Worker(sockets), Worker(sockets)
    async with joined(first, second):
        with first.peers._alone(), pytest.raises(SwapBusy):
            await second.peers.swap(NAME, newer("2.0.0"))
        assert second.version == "1.0.0"
        await second.peers.swap(NAME, newer("2.0.0"))
    assert first.version == "2.0.0"


async def test_reading_a_model_does_not_allocate_the_size_limit(
    newer: Callable[[str], str], tmp_path: Path
) -> None:
    data, manifest = ModelDirectory(tmp_path, 2**60).read(newer("2.0.0"))
    assert data == BUNDLED_MODEL.read_bytes()
    assert manifest.version == "2.0.0"


async def test_an_unsuitable_model_is_refused_with_the_reason(
    sockets: Path, newer: Callable[[str], str], tmp_path: Path
) -> None:
    worker, path = Worker(sockets), newer("2.0.0")
    bare = tmp_path / "bare.txt"
    shutil.copy(BUNDLED_MODEL, bare)
    async with joined(worker):
        for name, model, digest, reason in (
            ("other", path, None, "there is no model of that name; the models are btc-eth"),
            (NAME, path, "0" * 64, "its SHA-256 is not the expected one"),
            (NAME, "absent.txt", None, "there is no model file of that name"),
            (NAME, bare.name, None, "there is no manifest of that name"),
        ):
            with pytest.raises(SwapRefused, match=reason):
                await worker.peers.swap(name, model, digest)
    assert (worker.version, worker.swaps) == ("1.0.0", [])
