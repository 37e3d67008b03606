"""Escapes text for a terminal or a log line: control characters, line breaks and invisible characters."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str, encoding: str | None = "utf-8") -> str:
    r"""
    *text* on one line, with every invisible character escaped: control characters, line ends, direction marks.

    Args:
        encoding: The encoding of the output; characters that it lacks are escaped as well.

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
