"""Users of the public types pass mypy in strict mode; `scripts/pyright` checks the same files."""

from __future__ import annotations

from pathlib import Path

import pytest
from mypy import api

FILES = sorted((Path(__file__).parent / "typed_api").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_users_of_the_public_names_pass_the_strict_type_checker(path: Path) -> None:
    report, trouble, status = api.run(["--strict", "--warn-unused-ignores", str(path)])
    assert (status, trouble) == (0, ""), report
