"""
Gathers the pages of the documentation site from the repository.

`docs/` becomes the root of the site; other Markdown files keep their path. Links between pages are adapted. A link to a
file that is not a page leads to a page that shows the file. The reference has one page for each public module, which
mkdocstrings makes from the docstrings of the names in `__all__`. In a package that exports names itself, a module is
public if a page names it (CONTRIBUTING.md). The service is a program, so only the two modules for embedding and
configuring it are in the reference.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import griffe
from docs_doctests import fenced

ROOT = Path(__file__).parents[1]
SOURCES = {
    "idempotency": ROOT / "packages/idempotency/src",
    "predictor": ROOT / "packages/predictor/src",
    "ml_api": ROOT / "services/ml-api/src",
}
SERVICE_MODULES = {"ml_api.app", "ml_api.settings"}
PAGES = (
    "docs/**/*.md",
    "docs/site/index.markdown",
    "packages/*/README.md",
    "services/ml-api/*.md",
    "services/ml-api/clients/**/*.md",
    "services/ml-api/src/ml_api/models/README.md",
    "services/ml-api/src/ml_api/demo/README.md",
    "benchmarks/README.md",
    "examples/**/*.md",
    "*.md",
)
MOVED = {"docs/README.md": "all-pages.md", "docs/site/index.markdown": "index.md", "README.md": "readme.md"}
LANGUAGES = {
    ".py": "python",
    ".yaml": "yaml",
    ".json": "json",
    ".bicep": "text",
    ".conf": "text",
    ".toml": "toml",
}
SHOWN_BYTES = 40_000
FENCE = re.compile(r"(^(?:```|~~~).*?^(?:```|~~~)|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
NESTED = re.compile(r"(\]\(\s*<?)([^)\s>]+)(>?\s*\))")  # also around a picture: [![...](a)](b)


@dataclass
class Site:
    """Writes the site's pages to the folder *pages*, which is deleted first."""

    pages: Path
    edit_paths: dict[str, str] = field(default_factory=dict)
    """For each page the file to edit; a page that lists a folder has none."""
    documented: dict[str, str] = field(default_factory=dict)
    """For the path of each public name where it is defined, the path under which the reference shows it."""

    def gather(self) -> list[dict[str, str]]:
        """Write every page; return the navigation of the reference."""
        shutil.rmtree(self.pages, ignore_errors=True)
        sources = {path.relative_to(ROOT).as_posix() for pattern in PAGES for path in ROOT.glob(pattern)}
        self._sources = sources
        for source in sorted(sources):
            text = (ROOT / source).read_text(encoding="utf-8")
            self._write(site_path(source), self._with_links(text, source))
            self.edit_paths[site_path(source)] = source
        for asset in [
            *ROOT.glob("docs/**/*.svg"),
            *ROOT.glob("docs/site/*.css"),
            *ROOT.glob("docs/site/*.js"),
            *ROOT.glob("benchmarks/**/*.svg"),
        ]:
            target = self.pages / site_path(asset.relative_to(ROOT).as_posix())
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(asset, target)
        return list(self._reference())

    def _write(self, page: str, text: str) -> None:
        target = self.pages / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def _with_links(self, text: str, source: str) -> str:
        pieces = FENCE.split(text)
        pieces[::2] = [
            NESTED.sub(lambda link: link[1] + self._site_link(link[2], source) + link[3], piece)
            for piece in pieces[::2]
        ]
        return "".join(pieces)

    def _site_link(self, link: str, source: str) -> str:
        """Return the target on the site of *link*, a link in the file *source*."""
        if re.match(r"[a-z][a-z0-9+.-]*:|#", link) or source == "docs/site/index.markdown":
            return link
        path, hash_, anchor = link.partition("#")
        target = os.path.normpath(os.path.join(os.path.dirname(source), path))  # noqa: PTH118, PTH120 - of names
        if (ROOT / target).is_dir() and f"{target}/README.md" in self._sources:
            target = f"{target}/README.md"
        if target not in self._sources and not target.endswith(".svg"):
            target = self._shown(target)
        return os.path.relpath(site_path(target), os.path.dirname(site_path(source)) or ".") + hash_ + anchor  # noqa: PTH120

    def _shown(self, target: str) -> str:
        """Write a page that shows the file, or lists the folder, *target*; return its path."""
        path, page = ROOT / target, f"files/{target}.md"
        if path.is_dir():
            body = "\n".join(
                f"- `{entry.name}`" for entry in sorted(path.iterdir()) if entry.name[0] not in "._"
            )
        else:
            text = path.read_text(encoding="utf-8")
            if len(text) > SHOWN_BYTES:
                text = text[:SHOWN_BYTES] + "\n[...]\n"
            body = f"````{LANGUAGES.get(path.suffix, 'text')}\n{text}````"
            self.edit_paths[page] = target
        self._write(page, f"---\nsearch:\n  exclude: true\n---\n\n# {target}\n\n{body}\n")
        return page

    def _named(self) -> set[str]:
        """Return the modules and other dotted names of this project that occur in the pages."""
        texts = [(ROOT / source).read_text(encoding="utf-8") for source in self._sources]
        dotted = rf"\b(?:{'|'.join(SOURCES)})(?:\.\w+)+"
        return {name for text in texts for name in re.findall(dotted, text)}

    def _reference(self) -> Iterator[dict[str, str]]:
        loader = griffe.GriffeLoader(search_paths=list(SOURCES.values()))
        for package in SOURCES:
            loader.load(package)
        loader.resolve_aliases(implicit=True, external=False)
        for package in SOURCES:
            modules = _modules(loader.modules_collection[package], self._named())
            for module in modules:
                if not module.exports or (package == "ml_api" and module.path not in SERVICE_MODULES):
                    continue
                self._write(f"reference/{module.path}.md", _module_page(module, self.documented))
                self.edit_paths[f"reference/{module.path}.md"] = _file(module)
                yield {module.path: f"reference/{module.path}.md"}


def site_path(source: str) -> str:
    """Return the path on the site of the page that is made from *source*."""
    return MOVED.get(source) or source.removeprefix("docs/")


def _modules(module: griffe.Module, named: set[str]) -> Iterator[griffe.Module]:
    yield module
    inside = module.exports and module.parent is not None  # a subpackage that exports names itself
    for name, child in sorted(module.modules.items()):
        if name.startswith("_") or child.is_alias or (inside and child.path not in named):
            continue
        yield from _modules(child, named)


def _file(module: griffe.Module) -> str:
    path = module.filepath
    if isinstance(path, list):  # of a namespace package
        raise TypeError(f"{module.path} has several folders")
    return path.relative_to(ROOT).as_posix()


def _module_page(module: griffe.Module, documented: dict[str, str]) -> str:
    lines = [f"# `{module.path}`", "", fenced(module.docstring.value) if module.docstring else "", ""]
    for export in module.exports or ():
        name = str(export)
        if name.startswith("__") or name not in module.members:
            continue
        member = module.members[name]
        try:
            own = member.final_target.path if member.is_alias else member.path
        except griffe.AliasResolutionError:  # of another library
            lines += [f"## `{name}`", "", f"`{member.target_path}`", ""]
            continue
        path = f"{module.path}.{name}"
        if own in documented:
            elsewhere = documented[own]
            page = f"{elsewhere.rpartition('.')[0]}.md"
            lines += [f"## `{name}`", "", f"The same as [`{elsewhere}`]({page}#{elsewhere}).", ""]
        else:
            documented[own] = path
            lines += [f"::: {path}", ""]
    return "\n".join(lines)
