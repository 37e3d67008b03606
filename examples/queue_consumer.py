"""
A consumer of a queue that delivers at least once, and an account that is charged once per order all the same.

The queue is a directory: one JSON file for each message, deleted once it is acknowledged. A consumer that dies before
that finds the message again, as with any broker. Several consumers may share the directory.

    python examples/queue_consumer.py SPOOL          # consume what is there, then stop
    python examples/queue_consumer.py SPOOL --send '{"order": "o-1", "cents": 500}'
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from idempotency import (
    FingerprintMismatch,
    FirstRunFailed,
    InProgress,
    InvalidKey,
    NotReplayable,
    OutcomeUnknown,
    Policy,
    StoreError,
    SyncStore,
    current_claim,
    idempotent,
)
from idempotency.codecs import DataclassCodec
from idempotency.stores.sqlite import SyncSQLiteStore


@dataclass(frozen=True)
class Receipt:
    """The result of a charge."""

    order: str
    cents: int
    reference: str


class Account:
    """Somebody else's service, such as a payment provider: it deduplicates by the reference it is given."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with closing(sqlite3.connect(path)) as rows:
            rows.execute(
                "CREATE TABLE IF NOT EXISTS charge (reference TEXT PRIMARY KEY, charged TEXT, cents INTEGER)"
            )

    def charge(self, order: str, cents: int, *, reference: str) -> None:
        """Charge, unless *reference* was charged before."""
        with closing(sqlite3.connect(self._path)) as rows, rows:
            rows.execute("INSERT OR IGNORE INTO charge VALUES (?, ?, ?)", (reference, order, cents))

    def charges(self) -> list[tuple[str, int]]:
        """Every charge, as order and cents."""
        with closing(sqlite3.connect(self._path)) as rows:
            return rows.execute("SELECT charged, cents FROM charge ORDER BY rowid").fetchall()


def make_handler(account: Account, store: SyncStore) -> Callable[..., Receipt]:
    """The protected function."""

    @idempotent(
        store=store,
        operation="charge-order",
        key=lambda order, cents: order,
        codec=DataclassCodec(),
        policy=Policy(lease=10.0, retention=7 * 86_400.0),  # longer than a message may stay in the queue
    )
    def charge(order: str, cents: int) -> Receipt:
        if cents <= 0:
            raise ValueError("nothing to charge")  # the key is free again: a corrected message may use it
        claim = current_claim()
        assert claim is not None
        # The same on every attempt: if this consumer dies in the next line, the account knows the reference.
        reference = claim.derive("account")
        account.charge(order, cents, reference=reference)
        return Receipt(order, cents, reference)

    return charge


def consume(spool: Path) -> Iterator[str]:
    """Handle every message that is there, and say what became of it."""
    # The records are in the spool, where every consumer finds them.
    with closing(SyncSQLiteStore(spool / "records.db")) as store:
        charge = make_handler(Account(spool / "account.db"), store)
        yield from _handle_all(spool, charge)


def _handle_all(spool: Path, charge: Callable[..., Receipt]) -> Iterator[str]:
    for message in sorted(spool.glob("*.json")):
        try:
            receipt = charge(**json.loads(message.read_text()))
        except (InProgress, StoreError) as error:
            yield f"later: {error}"  # not acknowledged: the queue delivers it again
        except NotReplayable as error:
            message.unlink()
            yield f"done before: {error}"
        except FileNotFoundError:
            yield "acknowledged by another consumer"
        except (
            FingerprintMismatch,
            FirstRunFailed,
            InvalidKey,
            OutcomeUnknown,
            TypeError,
            ValueError,
        ) as error:
            message.rename(message.with_suffix(".dead"))  # for a person to look at
            yield f"dead letter: {error}"
        else:
            # Acknowledge. A crash before this line is what all of this is for.
            message.unlink(missing_ok=True)
            yield f"charged: order {receipt.order}, {receipt.cents} cents"


def send(spool: Path, message: str) -> None:
    """Put a message into the queue: whole, or not at all."""
    name = uuid.uuid4().hex
    draft = spool / f"{name}.draft"
    draft.write_text(message)
    draft.rename(spool / f"{name}.json")


def main() -> int:
    """Read the command line and obey."""
    parser = argparse.ArgumentParser(description="Charge every order in a spool directory once.")
    parser.add_argument("spool", type=Path)
    parser.add_argument("--send", metavar="JSON", help="put a message into the queue instead of consuming")
    options = parser.parse_args()
    options.spool.mkdir(parents=True, exist_ok=True)
    if options.send is not None:
        send(options.spool, options.send)
        return 0
    for line in consume(options.spool):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
