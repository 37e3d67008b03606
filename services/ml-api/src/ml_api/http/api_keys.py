"""
The API keys, each with a name. Keys in a file can be replaced without a restart.

Only SHA-256 digests of the keys stay in memory. Two keys may have the same name. So a rotation (add the new key, move
the callers, remove the old key) does not change the tenant, and recorded answers are still found.
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
"""A shorter key is refused at start, because it could be guessed."""

_MIN_DIFFERENT_CHARS = 5

_log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_RECHECK = 1.0  # s between checks of the file by `stat`

_Stamp = tuple[int, int, int]


def weakness_of(key: str) -> str | None:
    """Return why *key* is of no use as a key, as the end of a sentence that does not contain it; None if it is good."""
    if not key.isprintable():
        return "should be one line of printable characters, because a header cannot contain others"
    if len(key) < MIN_KEY_CHARS:
        return f"should have at least {MIN_KEY_CHARS} characters; openssl rand -hex 32 makes a good one"
    if len(set(key)) < _MIN_DIFFERENT_CHARS:
        return "should not repeat a few characters; openssl rand -hex 32 makes a good one"
    return None


class KeysFileError(Exception):
    """The keys file cannot be used; the message names the line, but not its content."""


class ApiKeys:
    """
    The accepted keys and their names.

    Args:
        single: A key without a name.
        file: A file of lines `name = key`, with `#` for comments. It is read now, and again within a second after a
            change. If the changed file cannot be used, that is logged, and the keys read before stay valid.
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
        self._next_check = clock() + _RECHECK
        self._named: tuple[tuple[bytes, str], ...] = ()
        if file is not None:
            self._stamp = _stamp(file)  # before reading, so that the next check sees a change in between
            self._named = _read(file)

    def name_of(self, presented: bytes) -> str | None:
        """
        Return the name of the key *presented*: "" for the single key, None for an unknown key.

        Takes constant time for any key: it compares the digest with all known digests.
        """
        self._reload_if_changed()
        digest, found = _digest(presented), None
        for known, name in (*self._single, *self._named):
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def _reload_if_changed(self) -> None:
        if self._file is None or self._clock() < self._next_check:
            return
        self._next_check = self._clock() + _RECHECK
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp  # also if it cannot be used: so that is logged once, until the file changes again
        try:
            self._named = _read(self._file)
        except KeysFileError as error:
            _log.error(
                "API keys file not usable; the keys read before stay valid until it is corrected",
                extra={"reason": str(error)},
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
        # Without the byte order mark that some editors on Windows write.
        lines = file.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise KeysFileError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise KeysFileError(f"{file} is not UTF-8 text; save it as UTF-8") from None
    keys = []
    for number, line in enumerate(lines, 1):
        if not (text := line.strip()) or text.startswith("#"):
            continue
        name, _, key = (part.strip() for part in text.partition("="))
        if not key or not _NAME.match(name):
            raise KeysFileError(
                f"{file}, line {number}: should be `name = key`; a name has 1 to 64 letters, digits, . _ -"
            )
        if (weakness := weakness_of(key)) is not None:
            raise KeysFileError(f"{file}, line {number}: the key {weakness}")
        keys.append((_digest(key.encode()), name))
    if not keys:
        raise KeysFileError(f"{file} holds no key; add a line `name = key`")
    if len({digest for digest, _ in keys}) < len(keys):
        raise KeysFileError(f"{file} has the same key twice; remove one of the two lines")
    return tuple(keys)
