"""
Builds the documentation site into build/docs/site. Fails on a broken link, or if a page loads a file of another host.

    scripts/docs                             build
    scripts/docs --serve                     build, then serve on 127.0.0.1:8000
    scripts/docs --repository URL            with links to edit each page there; default: [tool.project-address]
    scripts/docs --version 0.1.0             also keep it as this version, beside others, under build/docs/versions
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

from packaging.version import InvalidVersion, Version

sys.path.insert(0, str(Path(__file__).parent))
from docs_pages import ROOT, Site

BUILD = ROOT / "build" / "docs"
LOADED = re.compile(
    r"<(?:script|img|iframe|source|link(?=[^>]*stylesheet))\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)"
)


def main() -> int:
    """Build and check the site, then keep or serve it as the arguments say; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--serve", action="store_true")
    parser.add_argument(
        "--repository", metavar="URL", default=os.environ.get("DOCS_REPOSITORY_URL") or _address("repository")
    )
    parser.add_argument("--version", type=_version)
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
            "scripts/docs: these pages load something from another host; put it into docs/site:",
            *foreign,
            sep="\n  ",
            file=sys.stderr,
        )
        return 1
    unshown = [path for path in site.documented.values() if not _shows(built, path)]
    if unshown:
        print(
            "scripts/docs: these public names are not in the reference:",
            *unshown,
            sep="\n  ",
            file=sys.stderr,
        )
        return 1
    _write_sitemap(built)
    print(f"{len(site.documented)} public names in the reference")
    print(f"{sum(1 for _ in built.rglob('index.html'))} pages in {built.relative_to(ROOT)}")
    if args.version:
        _keep_version(built, args.version)
    if args.serve:
        handler = partial(http.server.SimpleHTTPRequestHandler, directory=built)
        print("serving on http://127.0.0.1:8000")
        http.server.ThreadingHTTPServer(("127.0.0.1", 8000), handler).serve_forever()
    return 0


def _address(of: str) -> str | None:
    """Return the public address of the repository or the documentation in pyproject.toml, or None."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return settings["tool"]["project-address"][of] or None


def _completed(reference: list[dict[str, str]], repository: str | None, version: str | None) -> str:
    """Return zensical.toml with the reference's navigation, absolute source paths, edit links and version menu."""
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
    """Point each edit link to the file from which the page was made; remove the link if there is none."""

    def rewritten(link: re.Match[str]) -> str:
        path = edit_paths.get(link[2])
        return "" if path is None else f"{link[1]}{path}{link[3]}"

    for page in built.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        changed = re.sub(
            r'(<a href="[^"]*/edit/main/)([^"]+)("[^>]*>.*?</a>)', rewritten, text, flags=re.DOTALL
        )
        # With this attribute, the theme would request stars and forks from the code host in every reader's browser.
        changed = changed.replace(' data-md-component="source"', "")
        if changed != text:
            page.write_text(changed, encoding="utf-8")


def _write_sitemap(built: Path) -> None:
    """
    Write sitemap.xml, which the version menu reads to find the same page in another version.

    The menu compares only the paths, so without a public address any host will do.
    """
    base = _address("documentation") or "http://localhost"
    pages = sorted(page.parent.relative_to(built).as_posix() for page in built.rglob("index.html"))
    found = "".join(f"<url><loc>{base}/{'' if page == '.' else f'{page}/'}</loc></url>\n" for page in pages)
    (built / "sitemap.xml").write_text(
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{found}</urlset>\n',
        encoding="utf-8",
    )
    (built / "sitemap.xml.gz").unlink(missing_ok=True)


def _version(text: str) -> str:
    """Return *text* normalized, if it is a version; it becomes the name of a folder."""
    try:
        return str(Version(text))
    except InvalidVersion:
        raise argparse.ArgumentTypeError(f"not a version: {text}") from None


def _keep_version(built: Path, version: str) -> None:
    """Copy the site beside the other versions, and list them all for the version menu."""
    versions = BUILD / "versions"
    versions.mkdir(exist_ok=True)
    shutil.rmtree(versions / version, ignore_errors=True)
    shutil.copytree(built, versions / version)
    names = sorted((path.name for path in versions.iterdir() if path.is_dir()), key=Version, reverse=True)
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
