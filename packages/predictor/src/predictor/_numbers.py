"""
Parses the lines of numbers in a model file, for all trees at once, by one strict grammar.

LightGBM reads such lines with three parsers. None of them reports text that it does not understand, and one falls back
to the C library, which depends on the locale. The grammar here is what all three and NumPy read alike: whole numbers of
digits with an optional minus sign, fractions as RFC 8259 (JSON) writes them, `inf` and `-inf`, separated by single
spaces.

The extension checks the same grammar and converts about ten times faster; a test compares the two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor.errors import ModelTextError

try:
    from predictor import _kernel
except ImportError:  # no compiler when this was installed
    _kernel = None  # type: ignore[assignment]

__all__ = ["NumberLines", "read_floats", "read_ints", "to_floats"]

_INT_BYTES = b"0123456789- "
_FLOAT_BYTES = b"0123456789+-.e inf"
# The grammar of fractions: a class for each byte, and which classes may follow each class.
_SPACE, _ZERO, _DIGIT, _POINT, _EXPONENT, _MINUS, _PLUS = range(7)
_CLASSES = bytes.maketrans(
    b" 0123456789.e-+", bytes([_SPACE, _ZERO, *[_DIGIT] * 9, _POINT, _EXPONENT, _MINUS, _PLUS])
)
_FOLLOWS = np.zeros(64, np.bool_)
for _first, _seconds in {
    _SPACE: (_ZERO, _DIGIT, _MINUS),
    _ZERO: (_SPACE, _ZERO, _DIGIT, _POINT, _EXPONENT),
    _DIGIT: (_SPACE, _ZERO, _DIGIT, _POINT, _EXPONENT),
    _POINT: (_ZERO, _DIGIT),
    _EXPONENT: (_ZERO, _DIGIT, _MINUS, _PLUS),
    _MINUS: (_ZERO, _DIGIT),
    _PLUS: (_ZERO, _DIGIT),
}.items():
    _FOLLOWS[[_first * 8 + _second for _second in _seconds]] = True


@dataclass(frozen=True, slots=True)
class NumberLines:
    """The values of one line name in all trees, and how many numbers each tree must have there."""

    name: str
    values: Sequence[bytes]
    sizes: Sequence[int]

    def joined(self) -> bytes:
        """
        Return all numbers as one text, separated by single spaces.

        Raises:
            ModelTextError: A line has a wrong number of entries.
        """
        entries = [value.count(b" ") + 1 if value else 0 for value in self.values]
        if entries != list(self.sizes):
            tree = next(tree for tree, size in enumerate(self.sizes) if entries[tree] != size)
            reason = f"line {self.name!r} has {entries[tree]} entries instead of {self.sizes[tree]}"
            raise ModelTextError(reason, tree=tree)
        return b" ".join(filter(None, self.values))

    def checked(self, passes: Callable[[bytes], bool]) -> bytes:
        """Return `joined()`, or raise ModelTextError if *passes* does not accept it."""
        text = self.joined()
        if text and not passes(text):
            tree = next(tree for tree, value in enumerate(self.values) if value and not passes(value))
            raise ModelTextError(f"line {self.name!r} must be numbers", tree=tree)
        return text


def read_ints(lines: NumberLines, *, low: int, high: int) -> NDArray[np.int64]:
    """
    Return the numbers of all trees, one tree after the other.

    Raises:
        ModelTextError: The text is not whole numbers, their count is wrong, or one is outside *low*..*high*; `tree`
            says where.
    """
    numbers = _to_ints(lines)
    if numbers.size and (numbers.min() < low or numbers.max() > high):
        at = int(((numbers < low) | (numbers > high)).argmax())
        tree = int(np.searchsorted(np.cumsum(lines.sizes), at, side="right"))
        raise ModelTextError(f"line {lines.name!r} has an entry outside {low}..{high}", tree=tree)
    return numbers


def read_floats(lines: NumberLines) -> bytes:
    """
    Check the numbers of all trees, and return them as one text for `to_floats`.

    Conversion is a separate call, because it costs more than everything else here and only LightGBM needs most numbers.

    Raises:
        ModelTextError: The text is not numbers, or their count is wrong; `tree` says where.
    """
    native = _native()
    return lines.checked(_are_floats if native is None else native.are_floats)


def to_floats(text: bytes) -> NDArray[np.float64]:
    """Convert the text that `read_floats` returned to float64 numbers, correctly rounded."""
    native = _native()
    if native is None or not text:
        return np.fromstring(text, np.float64, sep=" ") if text else np.empty(0, np.float64)
    numbers = np.empty(text.count(b" ") + 1, np.float64)
    if native.to_floats(text, numbers) != len(numbers):
        raise ValueError("the text is not numbers: pass what read_floats returned")
    return numbers


def _native() -> Any:
    """Return the extension, or None if it is not built or is switched off."""
    return None if os.environ.get("PREDICTOR_ENGINE") == "lightgbm" else _kernel


def _to_ints(lines: NumberLines) -> NDArray[np.int64]:
    native = _native()
    if native is not None:
        text = lines.joined()
        numbers = np.empty(sum(lines.sizes), np.int64)
        if not text or native.to_ints(text, numbers) == len(numbers):
            return numbers
    text = lines.checked(_are_ints)  # its error names the tree
    return np.fromstring(text, np.int64, sep=" ") if text else np.empty(0, np.int64)


def _are_ints(text: bytes) -> bool:
    """Whether *text* is whole numbers separated by single spaces; a minus sign may only begin a number."""
    padded = b" " + text + b" "
    return (
        not text.translate(None, _INT_BYTES)
        and text.count(b"-") == padded.count(b" -")
        and b"- " not in padded
        and b"  " not in padded
    )


def _are_floats(text: bytes) -> bool:
    """Whether *text* is numbers as RFC 8259 writes them, or infinities, separated by single spaces."""
    if text.translate(None, _FLOAT_BYTES):
        return False
    if b"i" in text or b"n" in text or b"f" in text:
        text = b" ".join(token for token in text.split(b" ") if token not in (b"inf", b"-inf"))
        if not text:
            return True
        if b"i" in text or b"n" in text or b"f" in text:
            return False
    marks = text.translate(None, b"0123456789+-")  # per number: at most one point, then at most one exponent
    if b".." in marks or b"ee" in marks or b"e." in marks:
        return False
    classes = np.frombuffer((b" " + text + b" ").translate(_CLASSES), np.uint8)
    pairs: NDArray[np.uint8] = np.left_shift(classes[:-1], 3, dtype=np.uint8)
    pairs |= classes[1:]
    if not _FOLLOWS[pairs].all():
        return False
    # A number may not begin with a zero and another digit; an exponent may.
    after = np.concatenate(
        (np.flatnonzero(pairs == _SPACE * 8 + _ZERO) + 2, _after_minus_zero(classes, pairs))
    )
    return not np.isin(classes[after], (_ZERO, _DIGIT)).any()


def _after_minus_zero(classes: NDArray[np.uint8], pairs: NDArray[np.uint8]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.flatnonzero(pairs == _MINUS * 8 + _ZERO)
    number_begins: NDArray[np.bool_] = classes[found - 1] == _SPACE
    return found[number_begins] + 2
