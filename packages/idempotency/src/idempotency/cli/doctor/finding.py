"""Defines a finding: what the doctor reports about one check."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["Finding"]


class Finding(NamedTuple):
    """
    The result of one check.

    Attributes:
        verdict: "ok"; "warn" if a failure may break a promise; "fail" if a promise is broken as things are; "info" for
            information only.
    """

    check: str
    verdict: Literal["ok", "warn", "fail", "info"]
    detail: str
