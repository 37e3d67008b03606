"""
The store's operations, made of DynamoDB's conditional writes.

The condition of each write is that the item is still as it was found. So of two writers one is refused, gets the item
that the other wrote, and decides again.
"""

from __future__ import annotations

import math
import secrets
from contextlib import suppress
from typing import Any, Final

from idempotency._core.errors import CorruptRecord, StoreError, StoreUnavailable
from idempotency._core.types import (
    Acquired,
    Claim,
    Completed,
    Fingerprint,
    Owner,
    Record,
    Reply,
    Running,
    StorageKey,
    key_id,
)
from idempotency.store import Page
from idempotency.stores.dynamodb.calls import Calls, ConditionFailed
from idempotency.stores.dynamodb.item import (
    FORMAT,
    ID,
    INLINE_BYTES,
    PART_BYTES,
    Attributes,
    Item,
    item_id,
    key_of,
    microseconds,
    part_id,
    read_item,
    write_item,
)

__all__ = ["Records"]

_MOST_TURNS: Final = 50  # each turn fails only because another writer succeeded
_KEPT_LONGER: Final = 60  # s after an item expired by every caller's clock, before DynamoDB may delete it
_HELD: Final = "#format = :format AND #state = :running AND #owner = :owner AND #expires > :by"


class _PartsGone(Exception):
    """A part of an outcome is missing, because the record was replaced after it was read."""


class Records:
    """The calls of `SyncStore`, on one table."""

    def __init__(self, calls: Calls, max_clock_skew: float) -> None:
        self._calls = calls
        self._skew = microseconds(max_clock_skew)
        # For two callers' clocks, and for the clock by which DynamoDB deletes.
        self._slack = math.ceil(2 * max_clock_skew) + _KEPT_LONGER

    # The rules.

    def acquire(
        self,
        key: StorageKey,
        *,
        fingerprint: Fingerprint,
        owner: Owner,
        lease: float,
        retention: float,
        takeover: bool,
    ) -> Reply:
        """See `Store.acquire`."""
        now = self._now()
        wanted = Item(
            "running", now, fingerprint, owner, 1, now + microseconds(lease), microseconds(retention)
        )
        found = self._put(key, wanted, retention, None)
        for _ in range(_MOST_TURNS):
            if found is None:
                return Acquired(wanted.claim(key))
            now = self._now()
            until, live = now + microseconds(lease), found.is_live(now, self._skew)
            if live and found.state == "completed":
                with suppress(_PartsGone):
                    return self._completed(key, found, now)
                found = self._reread(key, found)
                continue
            if live and found.owner == owner:  # R2
                wanted = found._replace(until=max(found.until, until))
                retention = found.retention / 1e6
            else:
                left = found.until - (now - self._skew)
                if live and (left > 0 or found.fingerprint != fingerprint or not takeover):
                    return Running(Fingerprint(found.fingerprint), max(left, 0) / 1e6)
                fence = max(now, found.fence + 1)  # R9
                attempt = found.attempt + 1 if live else 1
                wanted = Item("running", fence, fingerprint, owner, attempt, until, microseconds(retention))
            found = self._put(key, wanted, retention, found)
        raise StoreUnavailable(f"too many callers write the record of {key_id(key)} at once; try again")

    def renew(self, claim: Claim, *, lease: float) -> bool:
        """See `Store.renew`."""
        now = self._now()
        until = now + microseconds(lease)
        found = self._update(
            claim,
            "SET #until = :until, #expires = #retention + :until, #ttl = #ttl_after + :until_s",
            f"{_HELD} AND #until < :until",
            now,
            {":until": _n(until), ":until_s": _n(math.ceil(until / 1e6))},
        )
        if found is None:
            return True
        # The condition also fails if the lease already ends later; then the claim is still held (R4).
        return found.state == "running" and self._holds(claim, found, now)

    def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """See `Store.complete`."""
        now = self._now()
        kept, ttl = microseconds(retention), self._ttl(now, retention)
        values = {
            ":completed": {"S": "completed"},
            ":now": _n(now),
            ":retention": _n(kept),
            ":until": _n(now + kept),
            ":ttl": _n(ttl),
        }
        change = (
            "SET #state = :completed, #until = :now, #retention = :retention, #expires = :until, #ttl = :ttl"
        )
        parts: tuple[str, int] | None = None
        if len(outcome) <= INLINE_BYTES:
            change += ", #outcome = :outcome"
            values[":outcome"] = {"B": outcome}
        else:
            parts = self._write_parts(outcome, ttl)
            change += ", #parts = :parts, #part_count = :part_count"
            values |= {":parts": {"S": parts[0]}, ":part_count": _n(parts[1])}
        found = self._update(claim, change, _HELD, now, values)
        if found is None:
            return True
        if parts is not None and found.parts != parts:
            self._delete_parts(parts)
        # If it is completed, this is a repeat; the first outcome stays (R3).
        return found.state == "completed" and self._holds(claim, found, now)

    def release(self, claim: Claim) -> bool:
        """See `Store.release`."""
        now = self._now()
        removal = secrets.token_bytes(16)
        found = self._update(
            claim,
            "SET #state = :removed, #removal = :removal, #ttl = :ttl REMOVE #owner, #fingerprint, #expires",
            _HELD,
            now,
            {":removed": {"S": "removed"}, ":removal": {"B": removal}, ":ttl": _n(self._ttl(now, 0.0))},
        )
        return found is None or found.removal == removal  # equal if the driver repeated this call

    def get(self, key: StorageKey) -> Record | None:
        """See `Store.get`."""
        for _ in range(_MOST_TURNS):
            found, now = self._read(key), self._now()
            if found is None or not found.is_live(now, self._skew):
                return None
            with suppress(_PartsGone):
                return found.record(key, self._outcome(found), now, self._skew)
            self._reread(key, found)
        raise StoreUnavailable(f"the record of {key_id(key)} is replaced again and again; try again")

    # For operators.

    def scan(self, limit: int, cursor: str | None) -> Page:
        """See `Inspectable.scan`."""
        records: list[Record] = []
        start = {} if cursor is None else {"ExclusiveStartKey": {ID: {"S": cursor}}}
        while True:
            page = self._calls("scan", Limit=limit, ConsistentRead=True, **start)
            now = self._now()
            for attributes in page["Items"]:
                key = key_of(attributes)
                if key is None:
                    continue
                with suppress(StoreError, _PartsGone):  # skip an unreadable or replaced record
                    item = read_item(key, attributes)
                    if item.is_live(now, self._skew):
                        records.append(item.record(key, self._outcome(item), now, self._skew))
            last = page.get("LastEvaluatedKey")
            if last is None or len(records) >= limit:
                return Page(tuple(records), None if last is None else last[ID]["S"])
            start = {"ExclusiveStartKey": last}

    def forget(self, key: StorageKey) -> bool:
        """See `Inspectable.forget`."""
        removal = secrets.token_bytes(16)
        for _ in range(_MOST_TURNS):
            attributes = self._get(item_id(key))
            now = self._now()
            if attributes is None:
                return False
            try:
                found: Item | None = read_item(key, attributes)
            except StoreError:
                found = None
            if found is not None and found.state == "removed":
                return False
            fence = now if found is None else found.fence
            removed = Item("removed", fence, removal=removal)
            there = found is None or found.is_live(now, self._skew)
            met = self._put(key, removed, 0.0, found, anything=found is None)
            if met is not None and met.removal != removal:
                continue
            if found is not None and found.parts is not None:
                self._delete_parts(found.parts)
            return there
        raise StoreUnavailable(f"too many callers write the record of {key_id(key)} at once; try again")

    # Reading and writing items.

    def _now(self) -> int:
        return microseconds(self._calls.clock())

    def _ttl(self, end: int, retention: float) -> int:
        return math.ceil(end / 1e6 + retention) + self._slack

    def _holds(self, claim: Claim, found: Item, now: int) -> bool:
        return found.owner == claim.owner and found.is_live(now, self._skew)

    def _completed(self, key: StorageKey, item: Item, now: int) -> Completed:
        record = item.record(key, self._outcome(item), now, self._skew)
        assert record.outcome is not None
        return Completed(record.fingerprint, record.outcome, record.age, record.expires_in)

    def _get(self, name: str) -> Attributes | None:
        found: Attributes | None = self._calls("get_item", Key={ID: {"S": name}}, ConsistentRead=True).get(
            "Item"
        )
        return found

    def _read(self, key: StorageKey) -> Item | None:
        attributes = self._get(item_id(key))
        return None if attributes is None else read_item(key, attributes)

    def _reread(self, key: StorageKey, broken: Item) -> Item:
        """Read a record again after parts of its outcome were missing; it must have been replaced."""
        found = self._read(key)
        if found == broken:
            raise CorruptRecord(f"a part of the outcome of {key_id(key)} is missing; forget the record")
        return found if found is not None else _gone(broken.fence)

    def _put(
        self, key: StorageKey, item: Item, retention: float, found: Item | None, *, anything: bool = False
    ) -> Item | None:
        """Write *item* in place of *found*; returns None, or the item that prevented it."""
        ttl_after = math.ceil(retention) + self._slack
        end = item.until if item.state == "running" else self._now()
        condition: dict[str, Any] = {}
        if not anything:
            condition = _unchanged(found) | {"ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
        try:
            self._calls(
                "put_item",
                Item=write_item(key, item, ttl=math.ceil(end / 1e6) + ttl_after, ttl_after=ttl_after),
                **condition,
            )
        except ConditionFailed as failed:
            if failed.found is None:  # DynamoDB deleted it in between
                return _gone(0 if found is None else found.fence)
            return read_item(key, failed.found)
        return None

    def _update(
        self, claim: Claim, change: str, condition: str, now: int, values: dict[str, Any]
    ) -> Item | None:
        """Change the record of *claim*; returns None, or the item that prevented it."""
        values = values | {
            ":format": _n(FORMAT),
            ":running": {"S": "running"},
            ":owner": {"B": claim.owner},
            ":by": _n(max(now - self._skew, 0)),
        }
        words = f"{change} {condition}".replace(",", " ").split()
        try:
            self._calls(
                "update_item",
                Key={ID: {"S": item_id(claim.key)}},
                UpdateExpression=change,
                ConditionExpression=condition,
                ExpressionAttributeNames={word: word[1:] for word in words if word.startswith("#")},
                ExpressionAttributeValues=values,
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except ConditionFailed as failed:
            if failed.found is None:
                return _gone(0)
            return read_item(claim.key, failed.found)
        return None

    # Outcomes that are too long for one item.

    def _write_parts(self, outcome: bytes, ttl: int) -> tuple[str, int]:
        name = secrets.token_hex(16)  # new for each call, so that no other call's parts are overwritten
        pieces = [outcome[start : start + PART_BYTES] for start in range(0, len(outcome), PART_BYTES)]
        for number, piece in enumerate(pieces):
            self._calls(
                "put_item",
                Item={ID: {"S": part_id(name, number)}, "piece": {"B": piece}, "ttl": _n(ttl)},
            )
        return name, len(pieces)

    def _delete_parts(self, parts: tuple[str, int]) -> None:
        for number in range(parts[1]):
            with suppress(StoreError):  # DynamoDB deletes the part when it expires
                self._calls("delete_item", Key={ID: {"S": part_id(parts[0], number)}})

    def _outcome(self, item: Item) -> bytes | None:
        if item.parts is None:
            return item.outcome
        name, count = item.parts
        pieces = []
        for number in range(count):
            piece = (self._get(part_id(name, number)) or {}).get("piece", {}).get("B")
            if piece is None:
                raise _PartsGone
            pieces.append(piece)
        return b"".join(pieces)


def _unchanged(found: Item | None) -> dict[str, Any]:
    """The condition that the item is still as it was found; the fence identifies the claim."""
    if found is None or found == _gone(found.fence):
        return {
            "ConditionExpression": "attribute_not_exists(#id)",
            "ExpressionAttributeNames": {"#id": ID},
        }
    condition = "#fence = :fence AND #state = :state"
    names, values = {"#fence": "fence", "#state": "state"}, {":fence": _n(found.fence)}
    values[":state"] = {"S": found.state}
    if found.state == "running":
        condition += " AND #until = :until"
        names["#until"], values[":until"] = "until", _n(found.until)
    return {
        "ConditionExpression": condition,
        "ExpressionAttributeNames": names,
        "ExpressionAttributeValues": values,
    }


def _gone(fence: int) -> Item:
    """Represents a missing item, with the last fence that was seen in it."""
    return Item("removed", fence)


def _n(number: int) -> dict[str, Any]:
    return {"N": str(number)}
