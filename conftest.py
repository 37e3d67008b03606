"""Every Python example in the documentation and in docstrings is a test."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.rest import DocTestParser
from sybil.sybil import SybilCollection


def _enter(namespace: MutableMapping[str, object]) -> None:
    namespace["__name__"] = "__main__"  # frameworks ask the module of a handler where it lives
    namespace["installed"] = lambda name: find_spec(name) is not None  # for examples of what few have
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
