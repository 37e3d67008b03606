"""Encodes a record as a DynamoDB item, and reads its state at a given time. Times are microseconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from idempotency._core.errors import CorruptRecord, UnknownRecordVersion
from idempotency._core.types import Claim, Fingerprint, Owner, Record, State, StorageKey, key_id

__all__ = [
    "FORMAT",
    "ID",
    "INLINE_BYTES",
    "PART_BYTES",
    "Attributes",
    "Item",
    "item_id",
    "key_of",
    "microseconds",
    "part_id",
    "read_item",
    "write_item",
]

Attributes: TypeAlias = Mapping[str, Mapping[str, Any]]
"""An item in the client's form, such as `{"fence": {"N": "7"}}`."""

ID: Final = "id"
"""The table's partition key, a string."""

FORMAT: Final = 1
INLINE_BYTES: Final = 8_192
"""A longer outcome is kept in separate items, because a write is billed by the size of the item that it finds."""
PART_BYTES: Final = 390_000
"""The size of one part of a long outcome; an item may have 409,600 bytes, including its names."""

_RECORD: Final = "record:"
_MOST: Final = 2**63  # no store writes a larger number


class Item(NamedTuple):
    """
    Attributes:
        state: "removed" keeps only the fence, so that the next claim gets a larger one (R9).
        until: The end of the lease; for a completed record, the time of its completion.
        retention: How long the record is kept after *until*.
        outcome: None if it is in parts, or missing.
        parts: The name and the number of the parts of the outcome.
        removal: For a removed record: the id of the call that removed it.
    """

    state: Literal["running", "completed", "removed"]
    fence: int
    fingerprint: bytes = b""
    owner: bytes = b""
    attempt: int = 0
    until: int = 0
    retention: int = 0
    outcome: bytes | None = None
    parts: tuple[str, int] | None = None
    removal: bytes = b""

    @property
    def expires(self) -> int:
        """The time from which the record is absent, in microseconds."""
        return self.until + self.retention

    def is_live(self, now: int, skew: int) -> bool:
        """
        Whether the record exists at *now*.

        A running record lives *skew* longer, because its owner's clock may be behind this one.
        """
        if self.state == "running":
            return now - skew < self.expires
        return self.state == "completed" and now < self.expires

    def claim(self, key: StorageKey) -> Claim:
        """The claim that the owner of the record holds."""
        return Claim(key, Owner(self.owner), self.attempt, self.fence)

    def record(self, key: StorageKey, outcome: bytes | None, now: int, skew: int) -> Record:
        """The item as a `Record`, for people and tests."""
        running = self.state == "running"
        by = now - skew if running else now
        return Record(
            key=key,
            state=State.RUNNING if running else State.COMPLETED,
            fingerprint=Fingerprint(self.fingerprint),
            owner=Owner(self.owner),
            attempt=self.attempt,
            fence=self.fence,
            outcome=outcome,
            lease_left=(self.until - by) / 1e6 if running else 0.0,
            age=max(now - (self.fence if running else self.until), 0) / 1e6,
            expires_in=(self.expires - by) / 1e6,
        )


def microseconds(seconds: float) -> int:
    """*seconds*, a duration or a time, in microseconds."""
    return round(seconds * 1e6)


def item_id(key: StorageKey) -> str:
    """The partition key of a record."""
    return _RECORD + key


def key_of(attributes: Attributes) -> StorageKey | None:
    """The key of a record; None for any other item, such as a part of an outcome."""
    name = attributes.get(ID, {}).get("S", "")
    return StorageKey(name.removeprefix(_RECORD)) if name.startswith(_RECORD) else None


def part_id(name: str, number: int) -> str:
    """The partition key of a part of an outcome."""
    return f"part:{name}:{number}"


def write_item(key: StorageKey, item: Item, *, ttl: int, ttl_after: int) -> dict[str, dict[str, Any]]:
    """
    The attributes of *item*.

    Args:
        ttl: When DynamoDB may delete the item, in seconds since the epoch: after it expired by every caller's clock.
        ttl_after: The seconds between the end of the lease and *ttl*.
    """
    written: dict[str, dict[str, Any]] = {
        ID: {"S": item_id(key)},
        "format": {"N": str(FORMAT)},
        "state": {"S": item.state},
        "fence": {"N": str(item.fence)},
        "ttl": {"N": str(ttl)},
    }
    if item.state == "removed":
        return written | {"removal": {"B": item.removal}}
    return written | {
        "fingerprint": {"B": item.fingerprint},
        "owner": {"B": item.owner},
        "attempt": {"N": str(item.attempt)},
        "until": {"N": str(item.until)},
        "retention": {"N": str(item.retention)},
        "expires": {"N": str(item.expires)},
        "ttl_after": {"N": str(ttl_after)},
    }


def read_item(key: StorageKey, attributes: Attributes) -> Item:
    """
    Reads an item from its *attributes*.

    Raises:
        UnknownRecordVersion: Another version of this library wrote it.
        CorruptRecord: No store wrote it.
    """
    version = attributes.get("format", {}).get("N")
    if version != str(FORMAT):
        if isinstance(version, str) and version.isdecimal():
            raise UnknownRecordVersion(
                f"the record of {key_id(key)} has format {version[:20]}, this version reads {FORMAT}"
            )
        raise _corrupt(key)
    state = attributes.get("state", {}).get("S")
    fence = _number(key, attributes, "fence")
    if state == "removed":
        return Item("removed", fence, removal=_bytes(key, attributes, "removal"))
    if state not in {"running", "completed"}:
        raise _corrupt(key)
    item = Item(
        state,
        fence,
        _bytes(key, attributes, "fingerprint"),
        _bytes(key, attributes, "owner"),
        _number(key, attributes, "attempt"),
        _number(key, attributes, "until"),
        _number(key, attributes, "retention"),
    )
    if item.attempt < 1 or item.retention < 1:
        raise _corrupt(key)
    if state == "running":
        return item
    if "outcome" in attributes:
        return item._replace(outcome=_bytes(key, attributes, "outcome"))
    name = attributes.get("parts", {}).get("S")
    count = _number(key, attributes, "part_count")
    if not isinstance(name, str) or not 0 < count <= 10_000:
        raise _corrupt(key)
    return item._replace(parts=(name, count))


def _number(key: StorageKey, attributes: Attributes, name: str) -> int:
    text = attributes.get(name, {}).get("N", "")
    if not (isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) < 20):
        raise _corrupt(key)
    number = int(text)
    if number >= _MOST:
        raise _corrupt(key)
    return number


def _bytes(key: StorageKey, attributes: Attributes, name: str) -> bytes:
    value = attributes.get(name, {}).get("B")
    if not isinstance(value, bytes) or not value:
        raise _corrupt(key)
    return value


def _corrupt(key: StorageKey) -> CorruptRecord:
    return CorruptRecord(
        f"the item of {key_id(key)} was not written by this store; forget the record, or find out what wrote it"
    )
