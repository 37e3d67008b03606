"""
Every Python example in the documentation and in docstrings is a test.

`pytest -m fast` runs what needs no server, no process and no waiting: it collects nothing else. Tests whose dependency
group is not installed are left out, and named at the end; in CI they are an error.
"""

from __future__ import annotations

import logging
import os
from collections.abc import MutableMapping
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dependency_groups
import pytest
from hypothesis import HealthCheck, settings
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.rest import DocTestParser
from sybil.sybil import SybilCollection

ROOT = Path(__file__).parent
FAST = (
    "packages/idempotency/tests/core",
    "packages/idempotency/tests/decorators",
    "packages/idempotency/tests/engine",
    "services/ml-api/tests/trading",
)
"""Of these the tests are `fast`, but for those that wait in real time."""

# A machine that stands still for a moment shows no fault; CI=true has a profile of Hypothesis's own that agrees.
if not os.environ.get("CI"):
    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")


def pytest_configure() -> None:
    lacking = dependency_groups.missing("dev")
    if lacking and os.environ.get("CI", "").lower() == "true":
        raise pytest.UsageError(f"not installed, and CI runs every test: {', '.join(lacking)}; run `uv sync`")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for group in dict.fromkeys(dependency_groups.AREAS.values()):
        if lacking := dependency_groups.missing(group):
            areas = [area for area, needed in dependency_groups.AREAS.items() if needed == group]
            terminalreporter.write_line(
                f"left out: {', '.join(areas)}, for want of {', '.join(lacking[:5])}"
                f"{' and others' if len(lacking) > 5 else ''}; `uv sync --only-group {group}` installs that group alone"
            )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """
    Leave unread what cannot run here.

    With `-m fast` or `-m real_time` also what has no such test: reading every test file takes a while.
    """
    if dependency_groups.left_out(collection_path):
        return True
    if config.option.markexpr == "real_time" and collection_path.is_file():
        return True if b"mark.real_time(" not in collection_path.read_bytes() else None
    if config.option.markexpr != "fast" or collection_path == ROOT or ROOT not in collection_path.parents:
        return None
    places = [ROOT / place for place in FAST]
    near = any(
        place == collection_path or place in collection_path.parents or collection_path in place.parents
        for place in places
    )
    return None if near else True


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    # An application made by Litestar sets the root logger to INFO for the rest of the process.
    logging.getLogger().setLevel(logging.WARNING)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.path.is_relative_to(ROOT) or item.get_closest_marker("real_time"):
            continue
        if item.path.relative_to(ROOT).as_posix().startswith(FAST):
            item.add_marker("fast")


def _enter(namespace: MutableMapping[str, object]) -> None:
    namespace["__name__"] = "__main__"  # frameworks ask the module of a handler where it lives
    directory = TemporaryDirectory(prefix="example-", ignore_cleanup_errors=True)
    namespace["_leave"] = [partial(os.chdir, Path.cwd()), directory.cleanup]
    os.chdir(directory.name)  # a page may make files


def _leave(namespace: MutableMapping[str, Any]) -> None:
    for step in namespace["_leave"]:
        step()


pytest_collect_file = SybilCollection(
    [
        Sybil(
            parsers=[PythonCodeBlockParser(), SkipParser()],
            patterns=["*.md"],
            # Their own conftests give them what they need: commands that run, a database server.
            excludes=["packages/predictor/README.md", "docs/transactions.md"],
            setup=_enter,
            teardown=_leave,
        ),
        *(
            Sybil(
                parsers=[DocTestParser(optionflags=ELLIPSIS | NORMALIZE_WHITESPACE)],
                path=source,
                pattern="**/*.py",
                document_types={".py": PythonDocStringDocument},
            )
            for source in ("packages/idempotency/src", "packages/predictor/src", "services/ml-api/src")
        ),
    ]
).pytest()
