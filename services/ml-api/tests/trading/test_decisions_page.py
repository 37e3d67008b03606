"""The tables of DECISIONS.md match the code."""

from __future__ import annotations

import re
from pathlib import Path

from ml_api.trading.indicators import FEATURES
from ml_api.trading.rules import RULES

PAGE = (Path(__file__).parents[2] / "DECISIONS.md").read_text(encoding="utf-8")
DECISION = (Path(__file__).parents[2] / "src/ml_api/trading/decision.py").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    table = PAGE.partition(heading)[2].partition("\n## ")[0]
    return [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in re.findall(r"^\| `.*\|$", table, re.MULTILINE)
    ]


def test_the_page_defines_every_indicator_in_vector_order() -> None:
    assert tuple(name for name, _ in rows("## 2.")) == FEATURES


def test_the_page_lists_every_rule_with_its_text() -> None:
    assert rows("## 4.") == [[rule.feature, rule.text, rule.contribution] for rule in RULES]


def test_the_page_lists_every_reason_to_skip() -> None:
    raised = {
        reason.replace("{n}", "12").replace("{MIN_CANDLES}", "20")
        for reason in re.findall(r'_Unusable\(f?"(.+)"\)', DECISION)
    }
    assert {reason for reason, _ in rows("## 1.")} == raised
