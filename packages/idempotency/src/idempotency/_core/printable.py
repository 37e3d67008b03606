"""Escapes text for a terminal or a log line: control characters, line breaks and invisible characters."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str, encoding: str | None = "utf-8") -> str:
    r"""
    *text* on one line, with every character escaped that is not visible: controls, line ends, marks of direction.

    Args:
        encoding: Of where it is written to; what it has no sign for is escaped as well.

    >>> printable("k\x1b[2J\n\u202e1\udcff")
    'k\\x1b[2J\\n\\u202e1\\udcff'
    """
    shown = text
    if not text.isprintable():
        shown = "".join(
            character if character.isprintable() else character.encode("unicode_escape").decode()
            for character in text
        )
    encoding = encoding or "ascii"
    return shown.encode(encoding, "backslashreplace").decode(encoding)
