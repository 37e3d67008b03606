"""The workflows run only actions pinned by hash, with no more rights than their jobs need."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

WORKFLOWS = sorted((Path(__file__).parents[1] / ".github/workflows").glob("*.yml"))
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")

pytestmark = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def test_every_action_is_pinned_by_a_hash_and_names_its_version(path: Path) -> None:
    used = re.findall(r"^\s*(?:- )?uses: *(.+?) *$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert used
    assert [use for use in used if not use.startswith(("./", "$/")) and not PINNED.fullmatch(use)] == []


def test_a_job_has_the_permissions_that_it_names_and_no_others(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {}
    assert [name for name, job in workflow["jobs"].items() if "permissions" not in job] == []


def test_a_checkout_leaves_no_credentials(path: Path) -> None:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    steps = [step for job in jobs for step in job.get("steps", ()) if "/checkout@" in step.get("uses", "")]
    assert [step for step in steps if step.get("with", {}).get("persist-credentials") is not False] == []


def test_one_action_has_one_hash(path: Path) -> None:
    everywhere = "\n".join(file.read_text(encoding="utf-8") for file in WORKFLOWS)
    for action, pin in re.findall(r"uses: ([\w./-]+)@(\S+)", path.read_text(encoding="utf-8")):
        assert set(re.findall(rf"uses: {re.escape(action)}@(\S+)", everywhere)) == {pin}
