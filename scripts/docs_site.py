"""
Builds the documentation site into build/docs/site; a broken link, or anything that a page loads from elsewhere, fails.

    scripts/docs                             build
    scripts/docs --serve                     build, then serve on 127.0.0.1:8000
    scripts/docs --repository URL            with links to edit each page there
    scripts/docs --version 0.1.0             as a version of its own beside others, under build/docs/versions
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from docs_pages import ROOT, Site

BUILD = ROOT / "build" / "docs"
LOADED = re.compile(
    r"<(?:script|img|iframe|source|link(?=[^>]*stylesheet))\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)"
)


def main() -> int:
    """Build, check, and serve or keep the site as asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--repository", metavar="URL", default=os.environ.get("DOCS_REPOSITORY_URL"))
    parser.add_argument("--version")
    args = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    site = Site(BUILD / "pages")
    reference = site.gather()
    config = BUILD / "zensical.toml"
    config.write_text(_completed(reference, args.repository, args.version), encoding="utf-8")
    done = subprocess.run(
        [Path(sys.executable).parent / "zensical", "build", "--clean", "--strict", "-f", config], check=False
    )
    if done.returncode:
        return done.returncode
    built = BUILD / "site"
    if args.repository:
        _edit_links(built, site.edit_paths)
    foreign = [
        f"{page.relative_to(built)}: {url}"
        for page in sorted(built.rglob("*.html"))
        for url in LOADED.findall(page.read_text(encoding="utf-8"))
    ]
    if foreign:
        print(
            "scripts/docs: these pages load something from elsewhere:", *foreign, sep="\n  ", file=sys.stderr
        )
        return 1
    unshown = [path for path in site.documented.values() if not _shows(built, path)]
    if unshown:
        print(
            "scripts/docs: public names without a place in the reference:",
            *unshown,
            sep="\n  ",
            file=sys.stderr,
        )
        return 1
    print(f"{len(site.documented)} public names in the reference")
    print(f"{sum(1 for _ in built.rglob('index.html'))} pages in {built.relative_to(ROOT)}")
    if args.version:
        _keep_version(built, args.version)
    if args.serve:
        handler = partial(http.server.SimpleHTTPRequestHandler, directory=built)
        print("serving on http://127.0.0.1:8000")
        http.server.ThreadingHTTPServer(("127.0.0.1", 8000), handler).serve_forever()
    return 0


def _completed(reference: list[dict[str, str]], repository: str | None, version: str | None) -> str:
    """zensical.toml with the reference in its navigation, absolute paths to the sources, and what was asked for."""
    text = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    tomllib.loads(text)
    groups = {"idempotency": [], "predictor": [], "ml_api": []}
    for entry in reference:
        ((path, page),) = entry.items()
        package, _, inside = path.partition(".")
        groups[package].append(f"      {{ {json.dumps(inside or package)} = {json.dumps(page)} }},")
    listed = "\n".join(
        f"    {{ {json.dumps(package)} = [\n" + "\n".join(lines) + "\n    ] },"
        for package, lines in groups.items()
    )
    text = text.replace('{ "Reference" = [] },', f'{{ "Reference" = [\n{listed}\n  ] }},')
    ours = r'"((?:packages|services)/[\w-]+/src|scripts/docs_doctests\.py)"'
    text = re.sub(ours, lambda found: json.dumps(str(ROOT / found[1])), text)
    lines = ""
    if repository:
        lines += f"repo_url = {json.dumps(repository)}\nedit_uri = {json.dumps('edit/main/')}\n"
    text = text.replace("[project]\n", f"[project]\n{lines}", 1)
    if repository:
        text = text.replace("features = [\n", 'features = [\n  "content.action.edit",\n', 1)
    if version:
        text += '\n[project.extra.version]\nprovider = "mike"\n'
    return text


def _shows(built: Path, path: str) -> bool:
    """Whether the reference has a heading for the public name *path*."""
    page = built / "reference" / path.rpartition(".")[0] / "index.html"
    return f'id="{path}"' in page.read_text(encoding="utf-8")


def _edit_links(built: Path, edit_paths: dict[str, str]) -> None:
    """Lead each edit link to the file that the page was made of; a page that was generated has none."""
    for page in built.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        changed = re.sub(
            r'(<a href="[^"]*/edit/main/)([^"]+)("[^>]*>)',
            lambda link: link[1] + edit_paths.get(link[2], link[2]) + link[3],
            text,
        )
        if changed != text:
            page.write_text(changed, encoding="utf-8")


def _keep_version(built: Path, version: str) -> None:
    """Put the site beside the other versions, and list them all for the menu of versions."""
    versions = BUILD / "versions"
    versions.mkdir(exist_ok=True)
    shutil.rmtree(versions / version, ignore_errors=True)
    shutil.copytree(built, versions / version)
    names = sorted((path.name for path in versions.iterdir() if path.is_dir()), reverse=True)
    listed = [
        {"version": name, "title": name, "aliases": ["latest"] if name == names[0] else []} for name in names
    ]
    (versions / "versions.json").write_text(json.dumps(listed, indent=1), encoding="utf-8")
    (versions / "index.html").write_text(
        f'<!doctype html><meta charset="utf-8"><title>Documentation</title>'
        f'<meta http-equiv="refresh" content="0; url={names[0]}/"><a href="{names[0]}/">{names[0]}</a>\n',
        encoding="utf-8",
    )


if __name__ == "__main__":
    sys.exit(main())
