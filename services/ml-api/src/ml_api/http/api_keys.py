"""
The API keys: who may call, under which name, and how a key is replaced without a restart.

Only SHA-256 digests are kept in memory after a key was read. Two keys may share one name, so that a
rotation (add the new key, move the callers, drop the old key) changes no tenant and loses no recorded
answer.
"""

from __future__ import annotations

import hmac
import logging
import re
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

__all__ = ["MIN_KEY_CHARS", "ApiKeys", "KeysFileError", "weakness_of"]

MIN_KEY_CHARS = 12
"""A shorter key is refused at start: it could be guessed."""

_MIN_DIFFERENT_CHARS = 5

_log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_RECHECK = 1.0  # s between looks at the file: a `stat`, so that a new key works at once without a watcher

_Stamp = tuple[int, int, int]


def weakness_of(key: str) -> str | None:
    """Why *key* is too easy to guess, as the end of a sentence without the key; None for one that will do."""
    if len(key) < MIN_KEY_CHARS:
        return f"should have at least {MIN_KEY_CHARS} characters; openssl rand -hex 32 makes a good one"
    if len(set(key)) < _MIN_DIFFERENT_CHARS:
        return "should not repeat a few characters; openssl rand -hex 32 makes a good one"
    return None


class KeysFileError(Exception):
    """The keys file cannot be used; the message names the line and never its content."""


class ApiKeys:
    """
    The keys that are accepted, and the name of each.

    Args:
        single: The one key without a name.
        file: Lines `name = key`, `#` for comments. Read now; read again within a second of a change. A
            changed file that cannot be used is reported and the keys before it stay: a slip of the editor
            locks nobody out.
        clock: Monotonic seconds.
    Raises:
        KeysFileError: The file cannot be used.
    """

    def __init__(
        self,
        *,
        single: str | None = None,
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._single = ((_digest(single.encode()), ""),) if single else ()
        self._file, self._clock = file, clock
        self._stamp: _Stamp | None = None
        self._next_look = clock() + _RECHECK
        self._named: tuple[tuple[bytes, str], ...] = ()
        if file is not None:
            self._stamp = _stamp(file)  # before the content: a change in between is seen at the next look
            self._named = _read(file)

    def name_of(self, presented: bytes) -> str | None:
        """
        The name of the key *presented*: "" for the single one, None for a key that nobody has.

        Constant time in the key: digests are compared, and all of them, whichever matches.
        """
        self._look()
        digest, found = _digest(presented), None
        for known, name in (*self._single, *self._named):
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def _look(self) -> None:
        if self._file is None or self._clock() < self._next_look:
            return
        self._next_look = self._clock() + _RECHECK
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = (
            stamp  # a file that cannot be used is reported once, and tried again when it changes again
        )
        try:
            self._named = _read(self._file)
        except KeysFileError as error:
            _log.error(
                "API keys file not usable; the keys read before stay valid", extra={"reason": str(error)}
            )
        else:
            _log.info("API keys read again", extra={"keys": len(self._named)})


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()


def _stamp(file: Path) -> _Stamp | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(file: Path) -> tuple[tuple[bytes, str], ...]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except OSError as error:
        raise KeysFileError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise KeysFileError(f"{file} is not UTF-8 text") from None
    keys = []
    for number, line in enumerate(lines, 1):
        if not (text := line.strip()) or text.startswith("#"):
            continue
        name, _, key = (part.strip() for part in text.partition("="))
        if not key or not _NAME.match(name):
            raise KeysFileError(
                f"{file}, line {number}: should be `name = key`, the name of letters, digits, . _ -"
            )
        if (weakness := weakness_of(key)) is not None:
            raise KeysFileError(f"{file}, line {number}: the key {weakness}")
        keys.append((_digest(key.encode()), name))
    if not keys:
        raise KeysFileError(f"{file} holds no key; a line is `name = key`")
    if len({digest for digest, _ in keys}) < len(keys):
        raise KeysFileError(f"{file} gives one key twice; a key has one name")
    return tuple(keys)
