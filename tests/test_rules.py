"""The rules of stores (R1 ...) and of the engine (E1 ...): each is defined once and cited by a test."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "packages" / "idempotency"
PAGES = {"R": ROOT / "docs" / "store-contract.md", "E": ROOT / "docs" / "engine-rules.md"}
CONTRACT = PACKAGE / "src" / "idempotency" / "testing"

_DEFINED = re.compile(r"^\*\*([RE]\d+)\. ", re.MULTILINE)
_CITED = re.compile(r"(?<![\w.-])([RE]\d{1,2})(?![\w-])")


def defined() -> list[str]:
    """The numbers of the defined rules, in the order of the pages."""
    return [number for page in PAGES.values() for number in _DEFINED.findall(page.read_text())]


def texts() -> Iterator[tuple[Path, str]]:
    """The texts that may cite a rule: sources, tests and pages."""
    for folder in (PACKAGE, ROOT / "docs", ROOT / "services", ROOT / "tests", ROOT / "examples"):
        for path in folder.rglob("*"):
            if path.suffix in {".py", ".md", ".lua", ".pml"} and path != Path(__file__):
                yield path, path.read_text()


def cited_by_tests() -> set[str]:
    """The rules in `rule` marks of tests and in class names of the published store contract."""
    numbers = set()
    for path in (*(PACKAGE / "tests").rglob("*.py"), *CONTRACT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and path.is_relative_to(CONTRACT):
                numbers.update(re.findall(r"^R\d+(?=[A-Z])", node.name))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for decorator in node.decorator_list:
                    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.rule":
                        numbers.update(ast.literal_eval(argument) for argument in decorator.args)
    return numbers


def test_rules_are_numbered_without_gaps_and_defined_once() -> None:
    numbers = defined()
    assert numbers == [f"R{n}" for n in range(1, 10)] + [f"E{n}" for n in range(1, 11)]


def test_every_cited_rule_is_defined() -> None:
    known = set(defined())
    unknown = [
        f"{path.relative_to(ROOT)}: {number}"
        for path, text in texts()
        for number in _CITED.findall(text)
        if number not in known
    ]
    assert unknown == []


def test_every_defined_rule_is_cited_by_a_test() -> None:
    cited = cited_by_tests()
    assert [number for number in defined() if number not in cited] == []


def test_the_wsgi_page_lists_every_engine_rule() -> None:
    rows = re.findall(r"^\| (E\d+) ", (ROOT / "docs" / "wsgi.md").read_text(), re.MULTILINE)
    assert rows == [number for number in defined() if number.startswith("E")]
