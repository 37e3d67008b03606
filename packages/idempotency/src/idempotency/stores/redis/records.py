"""
Records in Redis, without any I/O: the scripts, their commands, and the reading of their replies.

Each record is one string, a JSON object that a person can read with `GET` and delete with `DEL`; `TTL` shows when it
expires:

    {"v":1,"state":"running","fingerprint":"<hex>","owner":"<hex>","attempt":1,"fence":1764000000000000,
     "lease_until_ms":1764000030000,"retention_ms":86400000}
    {"v":1,"state":"completed","fingerprint":"<hex>","owner":"<hex>","attempt":1,"fence":1764000000000000,
     "completed_at_ms":1764000001000, ...the members of the outcome, byte for byte...}

The fence of a released or forgotten record is kept, as a number, as long as the record would have been: under
`<prefix>fence:{<prefix><key>}`, which is on the same cluster node as the record.
"""

from __future__ import annotations

import math
import re
from binascii import hexlify, unhexlify
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, NamedTuple, TypeAlias

from redis.crc import key_slot

from idempotency._core.errors import CorruptRecord, UnknownRecordVersion
from idempotency._core.types import (
    Acquired,
    Claim,
    Completed,
    Fingerprint,
    Owner,
    Record,
    Reply,
    Running,
    State,
    StorageKey,
)

__all__ = [
    "Adopt",
    "Answer",
    "Command",
    "Names",
    "acquire",
    "complete",
    "forget",
    "get",
    "pack",
    "read_acquired",
    "read_cursor",
    "read_record",
    "release",
    "renew",
    "scan",
    "write_cursor",
]

Adopt: TypeAlias = Callable[[bytes], bytes | None]
"""Turns a value that this library did not write into an outcome, or into None if it cannot."""

_HEAD = re.compile(
    rb'\{"v":1,"state":"(running|completed)","fingerprint":"([0-9a-f]*)","owner":"([0-9a-f]*)",'
    rb'"attempt":(\d{1,18}),"fence":(\d{1,18}),"(?:lease_until_ms|completed_at_ms)":(\d{1,18})(?!\d),?'
)
_VERSION = re.compile(rb'\{"v":(\d+)[,}]')


class _Script(NamedTuple):
    """A Lua script of one key: its text, its SHA-1, and the beginnings of its EVAL and EVALSHA commands."""

    text: bytes
    sha: bytes
    eval: bytes
    evalsha: bytes


class Command(NamedTuple):
    """
    A command for *key*: a script with its arguments or, without a script, the words of a command.

    A script is sent as EVALSHA, and as EVAL if the server does not have it.

    Attributes:
        writes: Whether replicas may have to confirm it.
        removes: Whether a second try may find nothing because the first, whose answer was lost, removed it.
    """

    key: bytes
    args: tuple[bytes, ...]
    script: _Script | None = None
    writes: bool = True
    removes: bool = False

    def pack(self, *, with_text: bool = False) -> bytes:
        """The command in the Redis protocol; *with_text*: with the text of the script, not its digest."""
        if self.script is None:
            return pack(*self.args)
        begin = self.script.eval if with_text else self.script.evalsha
        return b"*%d\r\n%b%b" % (4 + len(self.args), begin, _bulk(self.key, *self.args))


class Answer(NamedTuple):
    """
    The reply to a command.

    Attributes:
        acked_replicas: How many replicas had confirmed every write of the connection; 0 if none is required.
    """

    reply: Any
    acked_replicas: int


def pack(*parts: bytes) -> bytes:
    """Any command in the Redis protocol (RESP2: an array of bulk strings)."""
    return b"*%d\r\n%b" % (len(parts), _bulk(*parts))


def _bulk(*parts: bytes) -> bytes:
    return b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


def _load(name: str) -> _Script:
    folder = files("idempotency.stores.redis") / "lua"
    text = (folder / f"{name}.lua").read_bytes()
    sha = sha1(text, usedforsecurity=False).hexdigest().encode()
    return _Script(text, sha, _bulk(b"EVAL", text, b"1"), _bulk(b"EVALSHA", sha, b"1"))


_ACQUIRE, _RENEW, _COMPLETE, _RELEASE, _GET, _FORGET = map(
    _load, ("acquire", "renew", "complete", "release", "get", "forget")
)
_FENCE = "fence:{"  # no storage key begins like this, because braces are escaped in it


class Names:
    """
    The names of a store's keys in Redis.

    Args:
        prefix: The beginning of every name.
        cluster: Whether the record and its fence must be in the same slot. With a few prefixes that contain braces
            they cannot; then no fence is kept after a record is gone.
    """

    def __init__(self, prefix: str, *, cluster: bool) -> None:
        self._prefix = prefix
        self._keeps_fences = True  # for the comparison below
        self._keeps_fences = not cluster or key_slot(self.record("k")) == key_slot(self.fence("k"))

    def record(self, key: str) -> bytes:
        """The name of the Redis key that holds the record of *key*."""
        return (self._prefix + key).encode("utf-8", "surrogateescape")

    def fence(self, key: str) -> bytes:
        """The name of the Redis key for the last fence of *key* after its record is gone; empty if it is not kept."""
        name = f"{self._prefix}{_FENCE}{self._prefix}{key}}}"
        return name.encode("utf-8", "surrogateescape") if self._keeps_fences else b""

    def keys(self, names: list[bytes]) -> list[StorageKey]:
        """
        The keys of the records among *names*, the result of a scan.

        Names by other programs may not be UTF-8: such bytes become surrogates (PEP 383), which `record` accepts.
        """
        keys = [name.decode("utf-8", "surrogateescape")[len(self._prefix) :] for name in names]
        return [StorageKey(key) for key in keys if not key.startswith(_FENCE)]


def acquire(
    key: bytes,
    fingerprint: Fingerprint,
    owner: Owner,
    lease: float,
    retention: float,
    takeover: bool,
    last_fence: bytes,
) -> Command:
    """The command for rule R1; durations in seconds; *last_fence* from `Names.fence`."""
    flag = b"1" if takeover else b"0"
    args = (hexlify(fingerprint), hexlify(owner), _ms(lease), _ms(retention), flag, last_fence)
    return Command(key, args, _ACQUIRE)


def renew(key: bytes, owner: Owner, lease: float) -> Command:
    """The command for rule R4."""
    return Command(key, (hexlify(owner), _ms(lease)), _RENEW)


def complete(key: bytes, owner: Owner, outcome: bytes, retention: float) -> Command:
    """
    The command for rule R3.

    Raises:
        ValueError: *outcome* is not a JSON object, so it cannot be appended to the head of the record.
    """
    if not outcome.startswith(b"{") or not outcome.endswith(b"}"):
        raise ValueError("an outcome must be one JSON object in UTF-8, without white space around it")
    return Command(key, (hexlify(owner), outcome[1:], _ms(retention)), _COMPLETE)


def release(key: bytes, owner: Owner, last_fence: bytes) -> Command:
    """The command for rule R5; *last_fence* from `Names.fence`."""
    return Command(key, (hexlify(owner), last_fence), _RELEASE, removes=True)


def get(key: bytes) -> Command:
    """The command that reads a record."""
    return Command(key, (), _GET, writes=False)


def read_acquired(
    reply: list[Any], key: StorageKey, fingerprint: Fingerprint, owner: Owner, adopt: Adopt | None
) -> Reply:
    """
    Reads the server's reply to `acquire`.

    Raises:
        UnknownRecordVersion: Another version of this library wrote the record.
        CorruptRecord: The value is not a record, and *adopt* does not accept it.
    """
    match reply:
        case [b"completed", value, now, to_live]:
            head = _HEAD.match(value)
            if head is None:
                raise CorruptRecord(_UNREADABLE)
            stored = Fingerprint(_unhex(head[2]))
            return Completed(stored, _outcome(value, head), _seconds(now - int(head[6])), _seconds(to_live))
        case [b"acquired", attempt, fence]:
            return Acquired(Claim(key, owner, attempt, int(fence)))
        case [b"running", stored, left]:
            return Running(Fingerprint(_unhex(stored)), left / 1000)
        case [b"foreign", value, to_live]:
            return Completed(fingerprint, _adopted(value, adopt), 0.0, _seconds(to_live))
        case _:
            raise CorruptRecord("Redis gave a reply that the acquire script cannot have made")


def read_record(reply: list[Any] | None, key: StorageKey, adopt: Adopt | None) -> Record | None:
    """
    Reads the server's reply to `get`; an adopted value has no owner and no fingerprint.

    Raises:
        UnknownRecordVersion, CorruptRecord: As `read_acquired`.
    """
    if reply is None:
        return None
    value, to_live, now = reply
    head = _HEAD.match(value)
    if head is None:
        state, fingerprint, owner, attempt, fence, moment = State.COMPLETED, b"", b"", 0, 0, now
        outcome: bytes | None = _adopted(value, adopt)
    else:
        state = State(head[1].decode())
        fingerprint, owner = (_unhex(head[group]) for group in (2, 3))
        attempt, fence, moment = (int(head[group]) for group in (4, 5, 6))
        outcome = _outcome(value, head) if state is State.COMPLETED else None
    return Record(
        key=key,
        state=state,
        fingerprint=Fingerprint(fingerprint),
        owner=Owner(owner),
        attempt=attempt,
        fence=fence,
        outcome=outcome,
        lease_left=0.0 if outcome is not None else (moment - now) / 1000,
        age=max(now * 1000 - fence, 0) / 1e6 if outcome is None else _seconds(now - moment),
        expires_in=_seconds(to_live),
    )


def forget(key: bytes, last_fence: bytes) -> Command:
    """The command that removes a record in any state; *last_fence* from `Names.fence`."""
    return Command(key, (last_fence,), _FORGET, removes=True)


def scan(prefix: str, position: bytes, limit: int) -> Command:
    """The command for one step of a scan for the keys of a node that begin with *prefix*."""
    pattern = re.sub(r"([\\*?\[\]^])", r"\\\1", prefix) + "*"
    return Command(
        b"", (b"SCAN", position, b"MATCH", pattern.encode(), b"COUNT", b"%d" % limit, b"TYPE", b"string")
    )


def read_cursor(cursor: str | None, places: int) -> tuple[int, bytes]:
    """
    Reads from a cursor the node (of *places* nodes) that a scan has reached, and the position on that node.

    Raises:
        ValueError: Not the cursor of a scan over that number of nodes.
    """
    place, colon, position = ("0:0" if cursor is None else cursor).partition(":")
    if not (colon and place.isdecimal() and position.isdecimal() and int(place) < places):
        raise ValueError("this is not a cursor of a scan over these nodes; begin again without one")
    return int(place), position.encode()


def write_cursor(place: int, position: bytes, places: int) -> str | None:
    """The cursor after *position* on node *place*; None at the end of the last node."""
    if int(position):
        return f"{place}:{int(position)}"
    return f"{place + 1}:0" if place + 1 < places else None


_UNREADABLE = (
    "the value under this key is not a record of this library; look at it with GET, and delete it with DEL once you "
    "know what wrote it"
)


def _adopted(value: bytes, adopt: Adopt | None) -> bytes:
    version = _VERSION.match(value)
    if version is not None and version[1] != b"1":
        raise UnknownRecordVersion(
            f"the record has version {int(version[1])}, this version of the library reads 1; upgrade"
        )
    outcome = adopt(value) if adopt is not None and version is None else None
    if outcome is None:
        raise CorruptRecord(_UNREADABLE)
    return outcome


def _outcome(value: bytes, head: re.Match[bytes]) -> bytes:
    return b"".join((b"{", memoryview(value)[head.end() :]))  # copied once, not twice


def _unhex(digits: bytes) -> bytes:
    try:
        return unhexlify(digits)
    except ValueError:  # an odd number of digits: this library did not write it
        raise CorruptRecord(_UNREADABLE) from None


@lru_cache(maxsize=64)  # policies have few different durations
def _ms(seconds: float) -> bytes:
    """Milliseconds, rounded up, at least 1: Redis refuses an expiry of 0."""
    return b"%d" % max(1, math.ceil(seconds * 1000))


def _seconds(milliseconds: int) -> float:
    # Negative if the server's clock was set back, or -1 if somebody removed the record's time to live.
    return max(milliseconds, 0) / 1000
