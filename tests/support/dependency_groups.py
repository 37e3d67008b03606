"""
Leaves out the tests whose dependency group is not installed, with a message; in CI that is an error.

CONTRIBUTING.md says how to install the group of one package.
"""

from __future__ import annotations

import functools
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

__all__ = ["AREAS", "left_out", "missing"]

ROOT = Path(__file__).parents[2]
AREAS = {
    "packages/idempotency/tests/dashboard/test_in_a_browser.py": "browser",
    "packages/idempotency": "idempotency",
    "packages/predictor": "predictor",
    "services/ml-api": "service",
    "tests": "test",
    "docs": "test",
    "examples": "test",
    "benchmarks": "test",
    "README.md": "test",
    "CHANGELOG.md": "test",
    "CONTRIBUTING.md": "test",
}
"""The paths with tests, and the group that each needs; a path inside another comes first."""


@functools.cache
def missing(group: str, pyproject: Path = ROOT / "pyproject.toml") -> tuple[str, ...]:
    """The distributions of *group* that are not installed."""
    names: list[str] = []
    for entry in tomllib.loads(pyproject.read_text())["dependency-groups"][group]:
        if isinstance(entry, dict):
            names += missing(entry["include-group"], pyproject)
            continue
        requirement = Requirement(entry)
        if requirement.marker is None or requirement.marker.evaluate():
            try:
                distribution(requirement.name)
            except PackageNotFoundError:
                names.append(requirement.name)
    return tuple(dict.fromkeys(names))


def left_out(path: Path) -> str | None:
    """The group that *path* needs if some of it is not installed, else None."""
    if not path.is_relative_to(ROOT):
        return None
    place = path.relative_to(ROOT).as_posix()
    for area, group in AREAS.items():
        if place == area or place.startswith(f"{area}/"):
            return group if missing(group) else None
    return None
