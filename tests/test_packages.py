"""Each library installs alone from its wheel and needs no more than it says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    uv = shutil.which("uv")
    assert uv, "uv builds the wheels; `pip install uv`"
    out = tmp_path_factory.mktemp("wheels")
    run(uv, "build", "--quiet", "--all-packages", "--wheel", "--out-dir", out, ROOT)
    return {wheel.name.partition("-")[0]: wheel for wheel in out.glob("*.whl")}


def test_importing_idempotency_needs_the_standard_library_alone() -> None:
    source = ROOT / "packages" / "idempotency" / "src"
    code = (
        f"import sys; sys.path.insert(0, {str(source)!r}); before = set(sys.modules)\n"
        "import idempotency, idempotency.stores.memory, idempotency.stores.sqlite, idempotency.decorators\n"
        "foreign = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(foreign - set(sys.stdlib_module_names) - {'idempotency'}))"
    )
    assert run(sys.executable, "-I", "-S", "-c", code).strip() == "[]"


def test_the_idempotency_wheel_works_alone(wheels: dict[str, Path], tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    uv = shutil.which("uv")
    assert uv
    run(
        uv,
        "pip",
        "install",
        "--quiet",
        "--offline",
        "--no-deps",
        "--python",
        python,
        wheels["asgi_idempotency"],
    )
    code = "import idempotency; print(idempotency.storage_key('a', 'b'))"
    assert run(python, "-I", "-c", code).strip() == "a:b"
    command = tmp_path / "venv" / "bin" / "idempotency"
    assert "show" in run(command, "--help")


@pytest.mark.parametrize(
    ("wheel", "files"),
    [
        ("asgi_idempotency", ["idempotency/py.typed", "idempotency/stores/redis/lua/acquire.lua"]),
        ("lightgbm_predictor", ["predictor/py.typed"]),
        (
            "ml_api",
            ["ml_api/py.typed", "ml_api/models/btc-eth.txt", "ml_api/models/btc-eth.txt.manifest.json"],
        ),
    ],
)
def test_a_wheel_carries_its_types_its_data_and_its_licence(
    wheels: dict[str, Path], wheel: str, files: list[str]
) -> None:
    names = ZipFile(wheels[wheel]).namelist()
    assert [name for name in files if name not in names] == []
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_predictors_wheel_has_the_kernel_and_not_its_source(wheels: dict[str, Path]) -> None:
    names = ZipFile(wheels["lightgbm_predictor"]).namelist()
    assert [name for name in names if name.endswith((".c", ".h")) or "/tests/" in name] == []
    assert ("predictor/_kernel.abi3.so" in names) == (shutil.which("cc") is not None)


def test_a_wheel_made_without_a_compiler_serves_through_lightgbm(tmp_path: Path) -> None:
    uv = shutil.which("uv")
    assert uv
    copy = tmp_path / "predictor"
    ignored = shutil.ignore_patterns("*.so", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "packages/predictor", copy, ignore=ignored)
    done = subprocess.run(
        [uv, "build", "--quiet", "--wheel", "--out-dir", tmp_path / "out", copy],
        env=os.environ | {"CC": "/bin/false"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = ZipFile(next((tmp_path / "out").glob("*.whl"))).namelist()
    assert "predictor/model.py" in names
    assert [name for name in names if name.endswith(".so")] == []


def test_the_model_in_the_package_is_small(wheels: dict[str, Path]) -> None:
    sizes = {info.filename: info.file_size for info in ZipFile(wheels["ml_api"]).infolist()}
    assert sizes["ml_api/models/btc-eth.txt"] < 1_000_000
