"""
The demo: what retries do without protection, and with each promise of the library.

A payment API runs as two worker processes over one SQLite file. Five orders are paid. An answer is lost, a request is
sent twice at once, workers are killed with SIGKILL before and after a charge is committed, and the client retries at
the other worker. Processes, sockets, signals and the file with the charges are all real.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from idempotency.cli.demo.fleet import DemoFailed, two_workers
from idempotency.cli.demo.scenes import SCENES
from idempotency.cli.demo.screen import Screen, Style
from idempotency.cli.demo.setups import LEDGER_SCHEMA, PRICE_CENTS, SETUPS, Setup

__all__ = ["Tally", "kept_promises", "run_demo"]


@dataclass(frozen=True, slots=True)
class Tally:
    """
    The counts of one set-up.

    Attributes:
        charges: How often each order was charged, according to the ledger.
        unresolved: Orders whose client was told in the end that the outcome is unknown.
    """

    setup: Setup
    charges: dict[str, int]
    unresolved: frozenset[str]

    @property
    def duplicates(self) -> int:
        """The number of charges after the first of each order."""
        return sum(max(0, count - 1) for count in self.charges.values())

    @property
    def lost(self) -> int:
        """The number of orders that were not charged although the client was not told so."""
        return sum(count == 0 for order, count in self.charges.items() if order not in self.unresolved)


def kept_promises(tallies: Sequence[Tally]) -> bool:
    """Whether no set-up made more duplicates than its promise allows, and none lost an order silently."""
    return all(tally.duplicates <= tally.setup.allowed_duplicates and tally.lost == 0 for tally in tallies)


def run_demo(screen: Screen) -> int:
    """
    Show every set-up, then the table.

    Returns:
        0 if every promise was kept: no duplicate under protection, except the one that plain at least once allows when
        a worker is killed after its charge. 3 if not, or if a worker did not do what the demo waits for.
    """
    screen.text("Five orders of 49.00 EUR, paid through two workers (A, B) over one SQLite file.", "title")
    screen.text("If the client gets no answer, it sends the request again, to the other worker.")
    tallies = []
    try:
        for number, setup in enumerate(SETUPS):
            tallies.append(_show(number, setup, screen))
    except (DemoFailed, OSError) as failed:
        screen.end_line()
        print(f"idempotency: the demo could not go on: {failed}", file=sys.stderr)
        return 3
    _conclude(tallies, screen)
    return 0 if kept_promises(tallies) else 3


def _show(number: int, setup: Setup, screen: Screen) -> Tally:
    screen.text()
    screen.piece(setup.name, "title")
    screen.piece(setup.summary, "dim", indent=2)
    screen.end_line()
    charges: dict[str, int] = {}
    unresolved = set()
    with ExitStack() as ending:
        # The folder is removed last, because workers keep its file open until they are killed.
        folder = ending.enter_context(tempfile.TemporaryDirectory(prefix="idempotency-demo-"))
        database = Path(folder) / "payments.sqlite3"
        ledger = ending.enter_context(closing(sqlite3.connect(database, timeout=30, isolation_level=None)))
        ledger.execute(LEDGER_SCHEMA)
        first, second = two_workers(ending, number, database)
        for scene in SCENES:
            screen.piece(scene.title, at=2)
            answer = scene.play(
                scene.order,
                first,
                second,
                lambda worker, what: screen.piece(f"{worker}: {what}", _style(what), at=28),
            )
            charges[scene.order] = _charged(ledger, scene.order)
            if answer.problem == "outcome-unknown":
                unresolved.add(scene.order)
            screen.piece(*_judged(charges[scene.order], scene.order in unresolved), at=62)
            screen.end_line()
    return Tally(setup, charges, frozenset(unresolved))


def _charged(ledger: sqlite3.Connection, order: str) -> int:
    count: int = ledger.execute("SELECT count(*) FROM charge WHERE customer_order = ?", (order,)).fetchone()[
        0
    ]
    return count


def _style(what: str) -> Style:
    if what == "kill -9":
        return "bad"
    if what == "lost" or what.startswith("409"):
        return "warn"
    return "good" if what.endswith("replay") else "plain"


def _judged(charges: int, unresolved: bool) -> tuple[str, Style]:
    text = f"{charges} charge" if charges == 1 else f"{charges} charges"
    if charges > 1:
        return f"{text}: TWICE", "bad"
    if unresolved:
        return f"{text}: open", "warn"
    return text, "good" if charges else "bad"


def _conclude(tallies: Sequence[Tally], screen: Screen) -> None:
    screen.text()
    rows: list[tuple[list[str], Style]] = []
    for tally in tallies:
        style: Style = "bad" if tally.duplicates else "warn" if tally.unresolved else "good"
        cells = [
            tally.setup.name,
            f"{len(tally.charges)}",
            f"{sum(tally.charges.values())}",
            f"{tally.duplicates}",
            f"{tally.duplicates * PRICE_CENTS / 100:.2f} EUR",
            f"{len(tally.unresolved)}",
        ]
        rows.append((cells, style))
    screen.table(["", "orders", "charges", "twice", "overcharged", "left open"], rows)
    screen.text()
    screen.text(
        "At least once may charge again when a worker dies after its charge: give the provider a key derived from the "
        "claim, or commit charge and record together. At most once never charges twice; after a crash it leaves the "
        "order open, for a person to check.",
    )
    if kept_promises(tallies):
        screen.text("Every promise was kept.", "good")
    else:
        screen.text("A PROMISE WAS BROKEN. Please report it, with the output above.", "bad")
