"""The workflows use actions pinned by hash, and their jobs have only named permissions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

WORKFLOWS = sorted((Path(__file__).parents[1] / ".github/workflows").glob("*.yml"))
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")

pytestmark = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def test_every_action_is_pinned_by_hash_with_its_version(path: Path) -> None:
    used = re.findall(r"^\s*(?:- )?uses: *(.+?) *$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert used
    assert [use for use in used if not use.startswith(("./", "$/")) and not PINNED.fullmatch(use)] == []


def test_every_job_names_its_permissions_and_there_are_none_by_default(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {}
    assert [name for name, job in workflow["jobs"].items() if "permissions" not in job] == []


def test_no_checkout_persists_credentials(path: Path) -> None:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    steps = [step for job in jobs for step in job.get("steps", ()) if "/checkout@" in step.get("uses", "")]
    assert [step for step in steps if step.get("with", {}).get("persist-credentials") is not False] == []


def test_each_action_has_the_same_hash_everywhere(path: Path) -> None:
    everywhere = "\n".join(file.read_text(encoding="utf-8") for file in WORKFLOWS)
    for action, pin in re.findall(r"uses: ([\w./-]+)@(\S+)", path.read_text(encoding="utf-8")):
        assert set(re.findall(rf"uses: {re.escape(action)}@(\S+)", everywhere)) == {pin}
