"""Defines a finding: what the doctor reports about one check."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["Finding"]


class Finding(NamedTuple):
    """
    One thing looked at.

    Attributes:
        verdict: "ok"; "warn" for what may break a promise under a failure; "fail" for what breaks it as it stands;
            "info" for what is only said.
    """

    check: str
    verdict: Literal["ok", "warn", "fail", "info"]
    detail: str
