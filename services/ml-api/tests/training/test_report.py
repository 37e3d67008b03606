"""The page of `ml-api report`: every chart, self-contained, the same bytes for the same model."""

from __future__ import annotations

import base64
import re
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ml_api.serving.registry import BUNDLED_MODEL
from ml_api.training.report import ReportUnavailable, render, write_report
from predictor import Manifest, ManifestError, manifest_path

TITLES = [
    "Walk-forward figures",
    "Calibration",
    "Confusion",
    "Class balance",
    "Importances",
    "Feature ranges",
]


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return Manifest.read(manifest_path(BUNDLED_MODEL))


@pytest.fixture(scope="module")
def page(manifest: Manifest) -> str:
    return render(manifest)


def pictures(page: str) -> dict[str, str]:
    found = re.findall(r'<img alt="([^"]+)" src="data:image/svg\+xml;base64,([^"]+)">', page)
    return {title: base64.b64decode(data).decode() for title, data in found}


def test_the_page_has_every_chart_as_valid_svg_with_text_labels(page: str) -> None:
    drawn = pictures(page)
    assert list(drawn) == TITLES
    for svg in drawn.values():
        assert ET.fromstring(svg).tag.endswith("svg")
    for title, words in {
        "Walk-forward figures": ["log loss", "2017–18", "baseline"],
        "Calibration": ["SELL", "HOLD", "BUY", "predicted probability"],
        "Confusion": ["predicted", "true"],
        "Importances": ["rsi_14", "volume_ratio"],
        "Feature ranges": ["sma_7", "volume_ratio"],
    }.items():
        for word in words:
            assert word in drawn[title], (title, word)


def test_the_page_states_each_metric_beside_its_baseline(page: str, manifest: Manifest) -> None:
    for name, metric in manifest.metrics.items():
        row = f"<tr><td>{name.replace('_', ' ')}</td><td>{metric.model:.4f}</td><td>{metric.baseline:.4f}</td></tr>"
        assert row in page
    assert manifest.sha256 in page


def test_the_page_loads_nothing_from_other_places(page: str) -> None:
    assert re.findall(r'(?:src|href)="(?!#|data:)', page) == []
    assert "<script" not in page
    assert "@import" not in page


def test_every_link_has_its_target_and_every_tag_is_closed(page: str) -> None:
    assert set(re.findall(r'href="#([^"]+)"', page)) == set(re.findall(r'<figure id="([^"]+)"', page))

    waiting: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in {"meta", "img"}:
                waiting.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert waiting.pop() == tag

    Balance().feed(page)
    assert waiting == []


def test_the_same_model_gives_the_same_page(page: str, manifest: Manifest) -> None:
    assert render(manifest) == page


def test_the_model_name_is_escaped(manifest: Manifest) -> None:
    page = render(manifest.model_copy(update={"name": "<script>alert(1)</script>"}))
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_write_report_writes_an_html_page(tmp_path: Path) -> None:
    write_report(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_manifest_without_training_provenance_is_refused(manifest: Manifest) -> None:
    with pytest.raises(ReportUnavailable, match=r"'data'.*ml-api train"):
        render(manifest.model_copy(update={"provenance": {}}))


def test_a_missing_manifest_raises_manifest_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError):
        write_report(tmp_path / "page.html", tmp_path / "none.txt")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, manifest: Manifest) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ReportUnavailable, match=r"matplotlib.*ml-api\[report\]"):
        render(manifest)
