"""The README lists every setting with its default, and only existing metrics."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from ml_api.observability.metrics import Metrics
from ml_api.settings import Settings

README = (Path(__file__).parents[1] / "README.md").read_text()


def named_settings() -> dict[str, str]:
    """
    The settings of the table and their defaults, empty where there is none or words describe it. Short forms
    (`_PORT`) are completed with the prefix of the name before them.
    """
    defaults = {}
    for row, values in re.findall(r"^\| (`ML_SERVICE_.*?) \|(.*?)\|", README, re.MULTILINE):
        first, *others = re.findall(r"`(\w+)`", row)
        stem = "REDIS" if "REDIS" in first else ""
        names = [first.removeprefix("ML_SERVICE_"), *(f"{stem}{other}".lstrip("_") for other in others)]
        for name, value in zip(names, values.split(","), strict=True):
            defaults[name] = value.strip().strip("`") if "`" in value else ""
    return defaults


def test_the_settings_table_lists_exactly_the_settings() -> None:
    assert set(named_settings()) == {name.upper() for name in Settings.model_fields}


def test_the_defaults_equal_those_of_the_settings_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("ML_SERVICE_API_KEY", "a-key-of-the-test")
    implied = Settings()
    for name, value in named_settings().items():
        if name != "API_KEY":
            monkeypatch.setenv(f"ML_SERVICE_{name}", str(Path(value).expanduser()) if "/" in value else value)
    assert Settings() == implied


def test_the_store_path_follows_xdg_state_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert (
        Settings(api_key=SecretStr("the-key-of-the-tests")).store_path
        == tmp_path / "ml-api" / "idempotency.sqlite3"
    )


@pytest.mark.parametrize("name", sorted(set(re.findall(r"ml_service_\w+", README))))
def test_every_metric_in_the_readme_exists(name: str) -> None:
    exposed = Metrics().render().decode()
    assert re.search(rf"^# TYPE {re.sub('_(bucket|total)$', '', name)}(_total)? ", exposed, re.MULTILINE)
