"""Renders the dashboard's HTML: everything that comes from a record or a request is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from urllib.parse import urlencode

from idempotency._core.description import STATES, StateName, outcome_kind, state_name
from idempotency._core.outcome import Response
from idempotency._core.printable import printable
from idempotency._core.types import Record, key_id
from idempotency.counts import Series

__all__ = [
    "address",
    "answer",
    "around",
    "confirmation",
    "counts_table",
    "link",
    "record_details",
    "records_table",
    "search_forms",
    "shown_of",
    "text",
    "totals_line",
    "totals_table",
]


def text(value: object) -> str:
    """*value* as visible text of a page."""
    return escape(printable(str(value)))


def link(base: str, label: str, **query: str) -> str:
    """A link within the dashboard."""
    return f'<a href="{escape(address(base, **query))}">{text(label)}</a>'


def address(base: str, **query: str) -> str:
    """The address of a page; empty values are left out."""
    given = {name: value for name, value in query.items() if value}
    return base + (f"?{urlencode(given, errors='surrogateescape')}" if given else "")


def around(root: str, title: str, pages: dict[str, str], here: str) -> tuple[str, str]:
    """
    The HTML before and after the body of a page.

    Args:
        pages: The paths below *root* that the head of each page links to, each with its name.
        here: The path of the current page.
    """
    links = "".join(
        f'<a href="{escape(root)}/{path}"{" aria-current=page" if path == here else ""}>{name}</a>'
        for path, name in pages.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{text(title)} - idempotency</title><link rel="stylesheet" href="{escape(root)}/style.css"></head>'
        '<body><a class="skip" href="#content">To the content</a>'
        f'<header><nav aria-label="Pages">{links}</nav></header><main id="content"><h1>{text(title)}</h1>',
        "</main></body></html>",
    )


def search_forms(root: str, *, tenant: str, state: str) -> str:
    """One form that finds a key, one that lists."""
    options = "".join(
        f'<option value="{name}"{" selected" if name == state else ""}>{name or "any"}</option>'
        for name in ("", *STATES)
    )
    return (
        f'<form action="{escape(root)}/find"><label>Tenant <input name="tenant" value="{text(tenant)}"></label>'
        '<label>Key <input name="key" required></label><button>Find this key</button></form>'
        f'<form action="{escape(root)}/"><label>Tenant <input name="tenant" value="{text(tenant)}"></label>'
        f'<label>State <select name="state">{options}</select></label><button>List</button></form>'
    )


def records_table(root: str, records: Sequence[Record]) -> str:
    """The records, one a line."""
    if not records:
        return '<p class="soft">None here.</p>'
    rows = "".join(
        f'<tr><td class="key">{link(root + "/record", record.key, key=record.key)}</td><td>{state_name(record)}</td>'
        f'<td class="number">{record.attempt}</td><td class="number">{_lease(record)}</td>'
        f'<td class="number">{_seconds(record.age)}</td><td class="number">{_seconds(record.expires_in)}</td>'
        f"<td>{'' if record.outcome is None else text(outcome_kind(record.outcome))}</td></tr>"
        for record in records
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Records"><table><thead><tr><th>Key</th>'
        '<th>State</th><th class="number">Attempt</th><th class="number">Lease left</th><th class="number">Age</th>'
        f'<th class="number">Expires in</th><th>Outcome</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _lease(record: Record) -> str:
    if record.lease_left >= 0:
        return _seconds(record.lease_left)
    return f"over for {_seconds(-record.lease_left)}"


def _seconds(seconds: float) -> str:
    if seconds <= 0:
        return ""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def record_details(record: Record) -> str:
    """The details of one record without its answer."""
    shown = {
        "State": state_name(record),
        "Key id in logs": key_id(record.key),
        "Attempt": record.attempt,
        "Fence": record.fence,
        "Lease left": _lease(record) or "none",
        "Age": _seconds(record.age) or "none",
        "Expires in": _seconds(record.expires_in),
        "Request's fingerprint": record.fingerprint.hex(),
        "Outcome": "none" if record.outcome is None else outcome_kind(record.outcome),
        "Outcome's size": f"{len(record.outcome or b'')} bytes",
    }
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td class="whole">{text(value)}</td></tr>'
        for name, value in shown.items()
    )
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Record"><table>{rows}</table></div>'


def answer(response: Response) -> str:
    """A recorded response."""
    lines = [f"{name.decode('latin-1')}: {value.decode('latin-1')}" for name, value in response.headers]
    body = response.body.decode("utf-8", "backslashreplace")
    shown = "\n".join(
        escape(printable(line)) for line in [str(response.status), *lines, "", *body.split("\n")]
    )
    return f'<h2>Recorded answer</h2><pre tabindex="0">{shown}</pre>'


def shown_of(root: str, counts: Mapping[StateName, int], scanned: int, *, whole: bool) -> str:
    """The line below a list: how much of the store it covers, and a link to the rest."""
    shown = sum(counts.values())
    states = f": {_by_state(counts)}" if shown else ""
    of = f"all {scanned:,}" if whole else f"{scanned:,} records that this page read; there may be more"
    return (
        f'<p class="soft">Shown: {shown}{states}. Of {of}. {link(root + "/totals", "Count all by state")}</p>'
    )


def totals_line(counts: Mapping[StateName, int]) -> str:
    """The line that tells the progress of a count."""
    return f"at least {sum(counts.values()):,}: {_by_state(counts)}"


def _by_state(counts: Mapping[StateName, int]) -> str:
    return ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts.get(state))


def totals_table(counts: Mapping[StateName, int], ended: str, seconds: float) -> str:
    """
    The result of a count.

    Args:
        ended: Why the count is incomplete; "" if it is complete.
    """
    least = "at least " if ended else ""
    rows = "".join(
        f'<tr><th scope="row">{state}</th><td class="number">{least}{counts.get(state, 0):,}</td></tr>'
        for state in STATES
    )
    return (
        (f'<p class="bad">{text(ended)}</p>' if ended else "")
        + f'<h2>Result</h2><table><thead><tr><th>State</th><th class="number">Records</th></tr></thead><tbody>{rows}'
        f'</tbody><tfoot><tr><th scope="row">all</th>'
        f'<td class="number">{least}{sum(counts.values()):,}</td></tr></tfoot></table>'
        f'<p class="soft">Counted in {seconds:.1f} s. Records that changed meanwhile may be missed or doubled.</p>'
    )


def confirmation(
    root: str, action: str, hidden: dict[str, str], *, consequences: Iterable[str], label: str, back: str
) -> str:
    """The list of consequences, and a form whose button sends *action*."""
    fields = "".join(
        f'<input type="hidden" name="{name}" value="{escape(value)}">' for name, value in hidden.items()
    )
    listed = "".join(f"<li>{text(line)}</li>" for line in consequences)
    return (
        f'<h2>What will happen</h2><ul>{listed}</ul><form method="post" action="{escape(root)}/{action}">{fields}'
        f'<button class="danger">{text(label)}</button> <a href="{escape(back)}">Cancel</a></form>'
    )


def counts_table(title: str, per_minute: Mapping[Series, Sequence[int]]) -> str:
    """
    The last minutes of each series: the sum, the rate, the busiest minute, and a bar chart.

    Args:
        per_minute: For each series its counts per minute, the oldest first; all series have the same length.
    """
    rows = []
    minutes = len(per_minute["hits"])
    for series, counts in per_minute.items():
        most = max(*counts, 1)
        bars = "".join(
            f'<rect x="{4 * at}" y="{24 - 24 * count / most:.1f}" width="3" height="{24 * count / most:.1f}"/>'
            for at, count in enumerate(counts)
            if count
        )
        rows.append(
            f'<tr><th scope="row">{series}</th><td class="number">{sum(counts):,}</td>'
            f'<td class="number">{sum(counts) / minutes:.2f}</td><td class="number">{max(counts):,}</td>'
            f'<td><svg class="bars" role="img" width="{4 * minutes}" height="24" viewBox="0 0 {4 * minutes} 24" '
            f'aria-label="{series}, minute by minute">{bars}</svg></td></tr>'
        )
    return (
        f'<h2>{text(title)}</h2><div class="scroll" tabindex="0" role="region" aria-label="{text(title)}"><table>'
        f'<thead><tr><th>Requests</th><th class="number">Last {minutes} min</th><th class="number">A minute</th>'
        '<th class="number">Most in a minute</th><th>Minute by minute</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
