"""Every Python example of these pages runs: a page is one program, block after block, in a directory of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser


def enter_empty_directory(namespace: dict[str, Any]) -> None:
    namespace["_left"], namespace["_entered"] = Path.cwd(), tempfile.mkdtemp()
    os.chdir(namespace["_entered"])


def leave_it(namespace: dict[str, Any]) -> None:
    os.chdir(namespace["_left"])
    shutil.rmtree(namespace["_entered"])


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], patterns=["*.md"], setup=enter_empty_directory, teardown=leave_it
).pytest()
