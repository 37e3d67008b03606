"""Every link between the pages of the repository has an existing file and anchor."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
FOREIGN = {"build", "node_modules", "site-packages", "venv"}
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]+`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
NAMED_PATH = re.compile(
    r"(?<![\w./:@-])(?:packages|services|docs|tests|scripts|benchmarks|examples)/[\w./*-]*\w"
)
ANCHOR = re.compile(r"<a\s+(?:id|name)=\"([^\"]+)\"", re.IGNORECASE)


def pages() -> list[Path]:
    """Every Markdown file of the project, without those of tools, caches and installed packages."""
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in FOREIGN)
        found += [Path(folder, name) for name in sorted(files) if name.endswith(".md")]
    return found


def slug(heading: str) -> str:
    """The anchor of a heading, by the rule of GitHub."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # the text of a link
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = page.read_text(encoding="utf-8")
    found = set(ANCHOR.findall(text))
    times: dict[str, int] = {}
    for heading in HEADING.findall(re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)):
        name = slug(heading)
        times[name] = times.get(name, -1) + 1
        found.add(f"{name}-{times[name]}" if times[name] else name)
    return found


def links(page: Path) -> list[str]:
    """The links of *page* within the repository, without those to other sites."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    every = [inline or reference for inline, reference in LINK.findall(text)]
    return [link for link in every if not re.match(r"[a-z][a-z0-9+.-]*:", link)]


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in links(page):
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT) or not target.exists():
            broken.append(f"{link}: no such file")
        elif anchor and (target.suffix != ".md" or anchor not in anchors(target)):
            broken.append(f"{link}: no such heading")
    return broken


def missing_paths(page: Path) -> list[str]:
    """The paths in the text and commands of *page* that do not exist."""
    text = re.sub(r"\]\([^)]*\)", "]", page.read_text(encoding="utf-8"))
    named = sorted(set(NAMED_PATH.findall(text)))
    return [path for path in named if not any(ROOT.glob(path)) and not any(page.parent.glob(path))]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_named_on_the_page_exists(page: Path) -> None:
    assert missing_paths(page) == []


def test_a_missing_path_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "page.md"
    page.write_text(
        "`docs/page.md` docs/*.md [a link](tests/gone.py)\n\n```console\npytest tests/old.py  # one file\n```\n"
    )
    assert missing_paths(page) == ["tests/old.py"]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_the_page_has_a_target(page: Path) -> None:
    assert broken_links(page) == []


def test_the_documentation_index_links_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    documentation = {page for page in pages() if page.is_relative_to(index.parent)}
    assert documentation - listed - {index} == set()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[there](#a-heading-it-has) [`code`](other.md#second)", []),
        ("[gone](gone.md)", ["gone.md: no such file"]),
        ("[gone](other.md#third)", ["other.md#third: no such heading"]),
        ("[gone](#second)", ["#second: no such heading"]),
        ("[name][r]\n\n[r]: gone.md", ["gone.md: no such file"]),
        ("[out](../../../outside.md)", ["../../../outside.md: no such file"]),
        ("`[code](gone.md)`\n\n```\n[code](gone.md)\n```\n", []),
        ("[site](https://example.org/x) [mail](mailto:a@example.org)", []),
    ],
)
def test_a_broken_link_is_reported(
    text: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(f"# A heading, it *has*\n\n{text}\n")
    (tmp_path / "other.md").write_text("# First\n\n## Second\n")
    assert broken_links(page) == expected
