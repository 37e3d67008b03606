"""The pages as text: everything that comes from a record or a request is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from urllib.parse import urlencode

from idempotency._core.description import STATES, outcome_kind, state_name
from idempotency._core.outcome import Response
from idempotency._core.printable import printable
from idempotency._core.types import Record, key_id
from idempotency.dashboard.counts import SERIES, Counts

__all__ = [
    "answer",
    "confirmation",
    "counts_table",
    "link",
    "page",
    "record_details",
    "records_table",
    "search_forms",
    "text",
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


def page(root: str, title: str, body: Iterable[str]) -> str:
    """A whole page."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{text(title)}</title><link rel="stylesheet" href="{escape(root)}/style.css"></head>'
        f"<body><header>{link(root + '/', 'All keys')}</header><main><h1>{text(title)}</h1>"
        f"{''.join(body)}</main></body></html>"
    )


def search_forms(root: str, *, tenant: str, state: str) -> str:
    """One form that finds a key, one that lists."""
    options = "".join(
        f"<option{' selected' if name == state else ''}>{name}</option>" for name in ("", *STATES)
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
        f'<td class="number">{record.attempt}</td><td class="number">{_seconds(record.lease_left)}</td>'
        f'<td class="number">{_seconds(record.age)}</td><td class="number">{_seconds(record.expires_in)}</td>'
        f"<td>{'' if record.outcome is None else text(outcome_kind(record.outcome))}</td></tr>"
        for record in records
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Records"><table><thead><tr><th>Key</th>'
        '<th>State</th><th class="number">Attempt</th><th class="number">Lease left</th><th class="number">Age</th>'
        f'<th class="number">Expires in</th><th>Outcome</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _seconds(seconds: float) -> str:
    if seconds <= 0:
        return ""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def record_details(record: Record) -> str:
    """What may be shown of one record without being asked for its answer."""
    shown = {
        "State": state_name(record),
        "Key id in logs": key_id(record.key),
        "Attempt": record.attempt,
        "Fence": record.fence,
        "Lease left": _seconds(record.lease_left) or "none",
        "Age": _seconds(record.age) or "none",
        "Expires in": _seconds(record.expires_in),
        "Request's fingerprint": record.fingerprint.hex(),
        "Outcome": "none" if record.outcome is None else outcome_kind(record.outcome),
        "Outcome's size": f"{len(record.outcome or b'')} bytes",
    }
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td>{text(value)}</td></tr>' for name, value in shown.items()
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


def confirmation(root: str, action: str, fields: dict[str, str], warning: str, label: str) -> str:
    """A form that does *action* when its button is pressed."""
    hidden = "".join(
        f'<input type="hidden" name="{name}" value="{escape(value)}">' for name, value in fields.items()
    )
    return (
        f'<p class="bad">{text(warning)}</p><form method="post" action="{escape(root)}/{action}">{hidden}'
        f"<button>{text(label)}</button> {link(root + '/', 'Cancel')}</form>"
    )


def counts_table(counts: Counts) -> str:
    """The last minutes of each series: a picture, the sum, and the rate."""
    rows = []
    for series in SERIES:
        minutes = counts.per_minute(series)
        most = max(*minutes, 1)
        bars = "".join(
            f'<rect x="{4 * at}" y="{24 - 24 * count / most:.1f}" width="3" height="{24 * count / most:.1f}"/>'
            for at, count in enumerate(minutes)
            if count
        )
        rows.append(
            f'<tr><th scope="row">{series}</th><td class="number">{sum(minutes)}</td>'
            f'<td class="number">{sum(minutes) / len(minutes):.2f}</td><td><svg class="bars" role="img" width="240" '
            f'height="24" viewBox="0 0 {4 * len(minutes)} 24" aria-label="{series} in each minute">{bars}</svg>'
            "</td></tr>"
        )
    return (
        '<h2>In this process</h2><div class="scroll" tabindex="0" role="region" aria-label="Counts"><table><thead>'
        f'<tr><th>Requests</th><th class="number">Last {len(counts.per_minute("hits"))} min</th>'
        '<th class="number">A minute</th>'
        f"<th>Minute by minute</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
