"""Tests are left out only if their dependency group is not installed, and every area has its group."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import dependency_groups
import pytest
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def test_every_dependency_of_the_dev_group_is_installed() -> None:
    assert dependency_groups.missing("dev") == ()
    assert dependency_groups.left_out(Path(__file__)) is None


def test_missing_distributions_of_included_groups_are_named(tmp_path: Path) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(
        '[dependency-groups]\ninner = ["no-such-distribution>=1", "other-system; sys_platform == \'none\'"]\n'
        'outer = [{ include-group = "inner" }, "pytest>=8"]\n'
    )
    assert dependency_groups.missing("outer", pyproject) == ("no-such-distribution",)


def installed_with(group: str) -> set[str]:
    """The distributions that `uv sync --only-group` installs for *group*, from the lock file."""
    packages: dict[str, list[Any]] = {}
    for package in tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]:
        packages.setdefault(package["name"], []).append(package)
    (root,) = packages["ml-workspace"]
    found: set[tuple[str, str | None]] = set()
    waiting = list(root["dev-dependencies"][group])
    while waiting:
        entry = waiting.pop()
        for extra in (None, *entry.get("extra", ())):
            if (entry["name"], extra) in found:
                continue
            found.add((entry["name"], extra))
            for package in packages[entry["name"]]:
                extras = package.get("optional-dependencies", {})
                waiting += package.get("dependencies", []) if extra is None else extras.get(extra, [])
    return {name for name, _ in found}


def imported(folder: Path) -> Iterator[tuple[str, Path]]:
    """The top-level modules that the files below *folder* import, each with the file."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((alias.name.partition(".")[0], path) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0], path


@pytest.mark.parametrize("area", ["packages/idempotency", "packages/predictor", "services/ml-api"])
def test_a_dependency_group_installs_every_import_of_its_area(area: str) -> None:
    there, distributions = installed_with(dependency_groups.AREAS[area]), packages_distributions()
    lacking = {
        (module, path.relative_to(ROOT).as_posix())
        for module, path in imported(ROOT / area)
        if path.name != "test_in_a_browser.py"  # of another group
        and module in distributions
        and not {canonicalize_name(name) for name in distributions[module]} & there
    }
    assert lacking == set()


@pytest.mark.parametrize("area", dependency_groups.AREAS)
def test_every_area_exists(area: str) -> None:
    assert (ROOT / area).exists()


@pytest.mark.parametrize("ci", ["", "true"])
def test_a_missing_group_leaves_its_tests_out_and_fails_in_ci(tmp_path: Path, ci: str) -> None:
    """A plugin hides one installed distribution from the run."""
    (tmp_path / "hide.py").write_text(
        "import importlib.metadata as metadata\n"
        "real = metadata.distribution\n"
        "def distribution(name):\n"
        "    if name == 'schemathesis':\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "metadata.distribution = distribution\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "hide",
            "-q",
            "--collect-only",
            "services/ml-api/tests/trading",
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    if ci:
        assert done.returncode == pytest.ExitCode.USAGE_ERROR, said
        assert "not installed, and CI runs every test: schemathesis" in said
    else:
        assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, said
        assert (
            "left out: services/ml-api, for want of schemathesis; `uv sync --only-group service` installs"
            in said
        )
