"""The public types, as mypy in strict mode sees them from outside; `scripts/pyright` reads the same files."""

from __future__ import annotations

from pathlib import Path

import pytest
from mypy import api

QUICKSTARTS = Path(__file__).parents[3] / "examples" / "quickstart"
FILES = [*sorted((Path(__file__).parent / "typed_api").glob("*.py")), *sorted(QUICKSTARTS.glob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_users_of_the_public_names_pass_the_strict_type_checker(path: Path) -> None:
    report, trouble, status = api.run(["--strict", "--warn-unused-ignores", str(path)])
    assert (status, trouble) == (0, ""), report
