"""The README says what there is: every setting, every metric that it mentions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ml_api.metrics import Metrics
from ml_api.settings import Settings

README = (Path(__file__).parents[1] / "README.md").read_text()


def named_settings() -> set[str]:
    """The settings in the table, short forms (`_PORT`) put behind the prefix of the name before them."""
    names = set()
    for row in re.findall(r"^\| (`ML_SERVICE_.*?) \|", README, re.MULTILINE):
        first, *others = re.findall(r"`(\w+)`", row)
        names |= {first.removeprefix("ML_SERVICE_")}
        for other in others:
            stem = "REDIS" if "REDIS" in first else ""
            names |= {f"{stem}{other}".lstrip("_")}
    return names


def test_every_setting_is_in_the_table_and_nothing_else() -> None:
    assert named_settings() == {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("name", sorted(set(re.findall(r"ml_service_\w+", README))))
def test_every_metric_in_the_readme_exists(name: str) -> None:
    exposed = Metrics().render().decode()
    assert re.search(rf"^# TYPE {re.sub('_(bucket|total)$', '', name)}(_total)? ", exposed, re.MULTILINE)
