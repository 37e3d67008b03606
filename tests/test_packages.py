"""The wheels: their content, their dependencies, their descriptions and the repository address."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from itertools import chain
from pathlib import Path
from zipfile import ZipFile

import pytest
from markdown_it import MarkdownIt
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://forge.example.org/owner/name"


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


def test_importing_idempotency_needs_only_the_standard_library() -> None:
    source = ROOT / "packages" / "idempotency" / "src"
    code = (
        f"import sys; sys.path.insert(0, {str(source)!r}); before = set(sys.modules)\n"
        "import idempotency, idempotency.stores.memory, idempotency.stores.sqlite, idempotency.decorators\n"
        "foreign = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(foreign - set(sys.stdlib_module_names) - {'idempotency'}))"
    )
    assert run(sys.executable, "-I", "-S", "-c", code).strip() == "[]"


def test_the_idempotency_wheel_works_without_dependencies(wheels: dict[str, Path], tmp_path: Path) -> None:
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
def test_a_wheel_contains_type_marker_data_and_licence(
    wheels: dict[str, Path], wheel: str, files: list[str]
) -> None:
    names = ZipFile(wheels[wheel]).namelist()
    assert [name for name in files if name not in names] == []
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_predictor_wheel_contains_the_kernel_without_its_source(wheels: dict[str, Path]) -> None:
    names = ZipFile(wheels["lightgbm_predictor"]).namelist()
    assert [name for name in names if name.endswith((".c", ".h")) or "/tests/" in name] == []
    assert ("predictor/_kernel.abi3.so" in names) == (shutil.which("cc") is not None)


def test_a_wheel_built_without_a_compiler_predicts_with_lightgbm(tmp_path: Path) -> None:
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
    wheel = ZipFile(next((tmp_path / "out").glob("*.whl")))
    names = wheel.namelist()
    assert [name for name in names if name.endswith(".so")] == []
    wheel.extractall(tmp_path / "installed")
    model = ROOT / "services/ml-api/src/ml_api/models/btc-eth.txt"
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r}); import predictor\n"
        f"model = predictor.Model.load({str(model)!r})\n"
        "print(predictor.__file__, model.info.engine, len(model.predict([[1.0] * 11])), sep='\\n')"
    )
    file, engine, answered = run(sys.executable, "-c", code).splitlines()
    assert file.startswith(str(tmp_path))
    assert engine.startswith("LightGBM")
    assert answered == "1"


def test_the_bundled_model_is_smaller_than_a_megabyte(wheels: dict[str, Path]) -> None:
    sizes = {info.filename: info.file_size for info in ZipFile(wheels["ml_api"]).infolist()}
    assert sizes["ml_api/models/btc-eth.txt"] < 1_000_000


def relative_links(description: str) -> list[str]:
    """The links of *description* that a package index cannot resolve."""
    html = MarkdownIt("commonmark").enable("table").render(description)
    return [link for link in re.findall(r'(?:href|src)="([^"]*)"', html) if not link.startswith("https://")]


@pytest.mark.parametrize("wheel", ["asgi_idempotency", "lightgbm_predictor", "ml_api"])
def test_a_package_description_has_only_absolute_links(wheels: dict[str, Path], wheel: str) -> None:
    with ZipFile(wheels[wheel]) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    description = metadata.get_payload()
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert len(description) > 2_000
    assert relative_links(description) == []


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A copy of the files that contain the address, with an address set."""
    for member in ("packages/idempotency", "packages/predictor", "services/ml-api"):
        (tmp_path / member).mkdir(parents=True)
        for file in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / member / file, tmp_path / member / file)
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    changed = re.sub(r'^repository = ".*"$', f'repository = "{REPOSITORY}"', settings, flags=re.MULTILINE)
    assert changed != settings
    (tmp_path / "pyproject.toml").write_text(changed, encoding="utf-8")
    return tmp_path


def address(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts/address", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_project_urls_and_links_use_the_repository_address(released: Path) -> None:
    assert address("--released", "--root", released).returncode == 1, "the address is not written yet"
    assert address("--root", released).returncode == 0
    assert address("--released", "--root", released).returncode == 0
    for member in ("packages/idempotency", "packages/predictor", "services/ml-api"):
        project = tomllib.loads((released / member / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert project["urls"]["Source"] == REPOSITORY
        assert project["urls"]["Homepage"] == f"{REPOSITORY}/tree/main/{member}"
        description = (released / member / "description.markdown").read_text(encoding="utf-8")
        assert relative_links(description) == []
        files = re.findall(
            rf"{re.escape(REPOSITORY)}/(?:blob|raw)/v{project['version']}/([^)#]+)", description
        )
        assert files
        assert [file for file in files if not (ROOT / file).exists()] == []


def test_removing_the_address_restores_the_files(released: Path) -> None:
    assert address("--root", released).returncode == 0
    shutil.copy(ROOT / "pyproject.toml", released / "pyproject.toml")
    assert address("--root", released).returncode == 0
    for member in ("packages/idempotency", "packages/predictor", "services/ml-api"):
        for file in ("pyproject.toml", "description.markdown"):
            written = (released / member / file).read_text(encoding="utf-8")
            assert written == (ROOT / member / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("wrong", ["http://forge.example.org/a/b", "https://forge.example.org/a/b/", "a/b"])
def test_an_invalid_address_is_refused(released: Path, wrong: str) -> None:
    settings = released / "pyproject.toml"
    settings.write_text(settings.read_text(encoding="utf-8").replace(REPOSITORY, wrong), encoding="utf-8")
    done = address("--root", released)
    assert done.returncode == 1
    assert "give an https address without a slash at its end" in done.stderr


def test_a_release_without_an_address_is_refused_with_the_setting(released: Path) -> None:
    settings = released / "pyproject.toml"
    settings.write_text(settings.read_text(encoding="utf-8").replace(REPOSITORY, ""), encoding="utf-8")
    done = address("--released", "--root", released)
    assert done.returncode == 1
    assert "Set repository in [tool.project-address] of pyproject.toml" in done.stderr
    release = (ROOT / "scripts/release").read_text(encoding="utf-8")
    asked = re.search(r"--check\) .*scripts/address --released", release)
    assert asked is not None
    assert asked.end() < release.index('"== build"'), "the check comes before the build"


def test_declared_versions_exclude_known_advisories() -> None:
    page = (ROOT / "docs/releasing.md").read_text(encoding="utf-8")
    table = page[page.index("| | lowest | because of |") :].partition("\n\n")[0]
    known = {
        canonicalize_name(name): Version(lowest)
        for name, lowest in re.findall(r"^\| ([\w-]+) \| ([\d.]+)", table, re.MULTILINE)
    }
    assert len(known) > 10
    seen, below = set(), []
    for member in ("packages/idempotency", "packages/predictor", "services/ml-api"):
        project = tomllib.loads((ROOT / member / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for text in [*project["dependencies"], *chain(*project["optional-dependencies"].values())]:
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            if name not in known:
                continue
            seen.add(name)
            floors = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
            if not floors or max(floors) < known[name]:
                below.append(f"{member}: {text}")
    assert below == []
    assert seen == set(known), "the table names undeclared distributions"
