"""Mistakes that prevent a start, each with a clear message and exit code 2; `check`; and light imports."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ml_api.serving.registry import BUNDLED_MODEL
from predictor import manifest_path

Command = Callable[..., subprocess.CompletedProcess[str]]

KEY = {"ML_SERVICE_API_KEY": "the-api-key-of-the-system-tests"}


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The message of a refused command."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.strip()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled model with its manifest."""
    copy = tmp_path / BUNDLED_MODEL.name
    shutil.copy(BUNDLED_MODEL, copy)
    shutil.copy(manifest_path(BUNDLED_MODEL), manifest_path(copy))
    return copy


def test_serve_without_an_api_key_is_refused(command: Command) -> None:
    assert "ML_SERVICE_API_KEY: an API key is required" in refused(command("serve", "--port", "0"))


def test_serve_with_an_altered_model_is_refused_in_one_line(command: Command, model: Path) -> None:
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    line = refused(command("serve", "--port", "0", ML_SERVICE_MODEL_PATH=str(model), **KEY))
    assert line.count("\n") == 0
    assert str(model) in line
    assert "sha256" in line.lower() or "sha-256" in line.lower()


def test_check_with_a_model_without_manifest_is_refused(command: Command, model: Path) -> None:
    manifest_path(model).unlink()
    assert "manifest" in refused(command("check", ML_SERVICE_MODEL_PATH=str(model), **KEY))


def test_serve_with_an_unwritable_store_path_is_refused(command: Command) -> None:
    line = refused(command("serve", "--port", "0", ML_SERVICE_STORE_PATH="/proc/no/store.sqlite3", **KEY))
    assert "ML_SERVICE_STORE_PATH" in line


def test_serve_with_a_store_file_that_is_no_database_is_refused_and_keeps_it(
    command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "store.sqlite3"
    file.write_text("not a database, whatever its name says\n" * 100)
    assert str(file) in refused(command("serve", "--port", "0", ML_SERVICE_STORE_PATH=str(file), **KEY))
    assert file.read_text().startswith("not a database")


def test_serve_with_a_wrong_redis_password_is_refused_without_the_password(
    command: Command, make_redis: Callable[..., Any]
) -> None:
    server = make_redis("--requirepass", "right")
    # A long deadline: if Redis does not answer in time, the service starts without it.
    patient = {**server.variables, "ML_SERVICE_STORE_DEADLINE": "60"}
    wrong = {**patient, "ML_SERVICE_REDIS_PASSWORD": "wrong-one"}
    line = refused(command("serve", "--port", "0", **wrong, **KEY))
    assert "Redis refuses this service" in line
    assert "wrong-one" not in line
    right = {**patient, "ML_SERVICE_REDIS_PASSWORD": "right"}
    assert "Redis answers" in command("check", **right, **KEY).stdout


def test_serve_with_a_redis_database_that_is_not_there_is_refused(
    command: Command, redis_server: Any
) -> None:
    variables = {**redis_server.variables, "ML_SERVICE_STORE_DEADLINE": "60", "ML_SERVICE_REDIS_DB": "99"}
    line = refused(command("serve", "--port", "0", **variables, **KEY))
    assert "Redis has no database of this number" in line


@pytest.fixture
def without_tracing(tmp_path: Path) -> dict[str, str]:
    """Tracing is wanted, but its libraries cannot be imported."""
    (tmp_path / "hidden" / "opentelemetry").mkdir(parents=True)
    (tmp_path / "hidden" / "opentelemetry" / "__init__.py").write_text("raise ImportError('not installed')")
    return {
        "PYTHONPATH": str(tmp_path / "hidden"),
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "ML_SERVICE_STORE_PATH": str(tmp_path / "s.sqlite3"),
    }


@pytest.mark.parametrize(
    "arguments", [("serve", "--port", "0"), ("serve", "--port", "0", "--workers", "2"), ("check",)]
)
def test_tracing_without_its_libraries_is_refused(
    command: Command, without_tracing: dict[str, str], arguments: tuple[str, ...]
) -> None:
    line = refused(command(*arguments, **without_tracing, **KEY))
    assert line == "ml-api: OTEL_EXPORTER_OTLP_ENDPOINT is set: install ml-api[otel], or unset it"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_on_an_address_in_use_is_refused_in_one_line_that_names_it(
    command: Command, tmp_path: Path, workers: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        variables = {"ML_SERVICE_STORE_PATH": str(tmp_path / "s.sqlite3"), **KEY}
        line = refused(command("serve", "--port", str(port), "--workers", workers, **variables))
    assert line.startswith(f"ml-api: cannot listen on 127.0.0.1, port {port}: Address already in use")
    assert line.count("\n") == 0


def test_serve_on_a_host_that_does_not_exist_is_refused(command: Command, tmp_path: Path) -> None:
    variables = {"ML_SERVICE_STORE_PATH": str(tmp_path / "s.sqlite3"), **KEY}
    line = refused(command("serve", "--host", "300.1.1.1", "--port", "0", **variables))
    assert line.startswith("ml-api: cannot listen on 300.1.1.1, port 0: ")


def test_a_metrics_directory_in_the_environment_is_not_used(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    service = serve(PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "not-there"))
    assert service.client.get("/metrics").status_code == 200


def test_check_reports_an_unreachable_redis_and_fails(command: Command, redis_server: Any) -> None:
    redis_server.kill()
    shown = command("check", **redis_server.variables, **KEY)
    assert shown.returncode == 1
    assert "store     away: Redis is not reachable yet" in shown.stdout


def test_check_lists_settings_models_and_store(command: Command, tmp_path: Path) -> None:
    shown = command("check", ML_SERVICE_STORE_PATH=str(tmp_path / "s.sqlite3"), **KEY)
    assert shown.returncode == 0, shown.stderr
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["settings", "models", "store"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve", "--workers", "0"), "--workers: should be 1 to 64"),
        (("serve", "--workers", "-3"), "--workers: should be 1 to 64"),
        (("serve", "--port", "99999"), "--port: should be 0 to 65535"),
        (("serve", "--port", "http"), "--port: invalid"),
        (("demo", "--body", "/no/such/body.json"), "/no/such/body.json cannot be read: No such file"),
        (("report", "--out", "/no/such/page.html"), "/no/such/page.html cannot be written: No such file"),
        (("report", "--model", "/no/such/model.txt"), "no manifest at"),
        (("train", "--out", "/dev/null/models"), "/dev/null/models cannot be written: Not a directory"),
    ],
)
def test_invalid_arguments_are_refused_in_one_line(
    command: Command, arguments: tuple[str, ...], said: str
) -> None:
    refusal = command(*arguments, **KEY)
    assert refusal.returncode == 2
    assert said in refusal.stderr.splitlines()[-1]


def test_the_application_imports_no_heavy_package(environment: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import sys; from ml_api.app import create_app; create_app();"
        "print({'scipy', 'pandas', 'lightgbm', 'sklearn', 'matplotlib', 'rich'} & set(sys.modules) or 'none')"
    )
    built = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | KEY | {"ML_SERVICE_STORE_PATH": str(tmp_path / "s.sqlite3")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.stdout == "none\n", built.stderr
