"""A missing optional dependency is noticed only where it is used, and the error says what to install."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path
from typing import NamedTuple

import pytest

import idempotency

SOURCE = Path(idempotency.__file__).parent


class Optional(NamedTuple):
    extra: str
    libraries: tuple[str, ...]
    use: str


OPTIONAL = [
    Optional("redis", ("redis", "hiredis"), "import idempotency.stores.redis"),
    Optional("redis", ("redis", "hiredis"), "from idempotency.stores.url import *; open_store('redis://localhost')"),
    Optional("postgres", ("psycopg", "psycopg_pool"), "import idempotency.stores.postgres"),
    Optional("postgres", ("psycopg",), "from idempotency.stores.url import *; open_store('postgresql://localhost/app')"),
    Optional("sqlalchemy", ("sqlalchemy",), "import idempotency.stores.sqlalchemy"),
    Optional("sqlalchemy", ("sqlalchemy",), "from idempotency.stores.url import *; open_store('mysql://localhost/app')"),
    Optional("django", ("django",), "import idempotency.stores.django"),
    Optional("django", ("django", "asgiref"), "import idempotency.django"),
    Optional("dynamodb", ("boto3", "botocore"), "import idempotency.stores.dynamodb"),
    Optional("dynamodb", ("boto3",), "from idempotency.stores.url import *; open_store('dynamodb://table')"),
    Optional("fastapi", ("fastapi", "starlette", "anyio"), "import idempotency.fastapi"),
    Optional("flask", ("flask",), "import idempotency.flask"),
    Optional("requests", ("requests", "urllib3"), "import idempotency.client.requests"),
    Optional("aiohttp", ("aiohttp",), "import idempotency.client.aiohttp"),
    Optional("dashboard", ("starlette",), "import idempotency.dashboard"),
    Optional("dashboard", ("uvicorn",), "import idempotency.dashboard.serve"),
    Optional("encryption", ("cryptography",), "import idempotency.stores.encrypted"),
    Optional("pydantic", ("pydantic",), "from idempotency.codecs import *; PydanticCodec().bind(int)"),
    Optional("prometheus", ("prometheus_client",), "from idempotency.hooks import *; PrometheusHook()"),
    Optional("otel", ("opentelemetry",), "from idempotency.hooks import *; OpenTelemetryHook()"),
    Optional("testing", ("hypothesis", "pytest"), "from idempotency.testing import StoreContract"),
    Optional("testing", ("pytest",), "import idempotency.testing.fixtures"),
]  # fmt: skip

NOT_REQUIRED = {
    "httpx": "the transport recognizes its requests and never imports it",
    "httpx2": "as httpx",
    "msgspec": "used for speed alone, where it is installed",
    "trio": "imported only where its event loop runs",
    "sniffio": "as trio",
    "aiosqlite": "imported for type checkers alone",
    "asyncpg": "as aiosqlite",
    "_typeshed": "as aiosqlite",
    "annotationlib": "in the standard library from Python 3.14 on",
    "litestar": "looked up in sys.modules, in an application that runs under it",
    "quart": "as litestar",
    "werkzeug": "as litestar",
    "rest_framework": "imported by idempotency.django.rest_framework alone, whose users have it",
}


ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {without!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def run(program: str, without: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run *program* in a process where the libraries *without* cannot be found."""
    code = ABSENT.format(without=without) + program
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)


@pytest.mark.parametrize("optional", OPTIONAL, ids=lambda one: f"{one.extra}: {one.use}")
def test_the_error_for_a_missing_library_names_the_extra_to_install(optional: Optional) -> None:
    done = run(optional.use, optional.libraries)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert f"pip install 'asgi-idempotency[{optional.extra}]'" in last
    assert any(name in last for name in optional.libraries), "it says which library it missed"


def test_every_extra_and_every_optional_import_is_listed_here() -> None:
    extras = set(metadata("asgi-idempotency").get_all("Provides-Extra") or ())
    assert extras - {"all"} == {one.extra for one in OPTIONAL} | {"client", "msgspec"}
    ours = set(sys.stdlib_module_names) | {"idempotency"}
    imported = {
        name
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _roots(node)
    } - ours
    listed = {library for one in OPTIONAL for library in one.libraries} | set(NOT_REQUIRED)
    assert imported <= listed, "an optional import that no test runs without"


def _roots(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
        return {node.module.partition(".")[0]}
    return set()


def test_the_package_and_its_test_tools_work_without_third_party_libraries() -> None:
    third_party = tuple({library for one in OPTIONAL for library in one.libraries} | set(NOT_REQUIRED))
    program = (
        "import asyncio\n"
        "import idempotency.client, idempotency.wsgi, idempotency.openapi, idempotency.hooks, idempotency.aws\n"
        "from idempotency import IdempotencyMiddleware, one_tenant\n"
        "from idempotency.stores.memory import MemoryStore\n"
        "from idempotency.testing import assert_idempotent\n"
        "runs = []\n"
        "async def app(scope, receive, send):\n"
        "    runs.append(1)\n"
        "    await send({'type': 'http.response.start', 'status': 201, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': b'done'})\n"
        "guarded = IdempotencyMiddleware(app, store=MemoryStore(), tenant=one_tenant())\n"
        "print(asyncio.run(assert_idempotent(guarded, 'POST', '/', effects=lambda: len(runs))).twins)\n"
    )
    done = run(program, third_party)
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr
