"""Runs the README's examples as tests: Python as written, and `predictor` commands through the command's `main`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from predictor.cli import main


def _run_command(example: Example) -> None:
    for line in example.parsed.splitlines():
        if line.startswith("$ predictor "):
            assert main(shlex.split(line)[2:]) == 0, line


def _enter(namespace: dict[str, Any]) -> None:
    """Run each document in a temporary folder, where its examples may write files."""
    namespace["_folder"], namespace["_before"] = TemporaryDirectory(), Path.cwd()
    os.chdir(namespace["_folder"].name)


def _leave(namespace: dict[str, Any]) -> None:
    os.chdir(namespace["_before"])
    namespace["_folder"].cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), CodeBlockParser(language="console", evaluator=_run_command)],
    patterns=["README.md"],
    path=str(Path(__file__).parent),
    setup=_enter,
    teardown=_leave,
).pytest()
