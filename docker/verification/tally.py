"""Each check, its part and the figure it measured; and at the end the table of what was run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Part", "Tally"]

Part = Callable[["Tally", Path], None]

_PART_SECONDS = int(os.environ.get("VERIFY_PART_SECONDS", "600"))


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the main thread, wherever it waits, where the block takes longer."""

    def too_long(*_: object) -> None:
        raise TimeoutError(f"longer than {seconds} s (VERIFY_PART_SECONDS)")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@dataclass(slots=True)
class _Row:
    name: str
    what: str
    checks: int = 0
    failed: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Tally:
    """Counts checks, part by part; a check that fails does not stop the rest."""

    failures: list[str] = field(default_factory=list)
    _rows: list[_Row] = field(default_factory=list)

    def check(self, name: str, holds: bool, figure: object = "") -> None:
        row = self._rows[-1]
        row.checks += 1
        if not holds:
            row.failed += 1
            self.failures.append(f"{row.name}: {name}")
        print(f"  {'ok  ' if holds else 'FAIL'} {name}{f': {figure}' if figure != '' else ''}", flush=True)

    def figure(self, name: str, value: str) -> None:
        print(f"  ---- {name}: {value}", flush=True)

    def run(self, name: str, part: Part, scratch: Path) -> None:
        """Run one part; where it breaks, that is a failed check, and the parts after it can still be told apart."""
        print(f"\n{name}", flush=True)
        self._rows.append(_Row(name, (part.__doc__ or "").splitlines()[0]))
        begun = time.perf_counter()
        try:
            with _at_most(_PART_SECONDS):
                part(self, scratch)
        except Exception as error:
            self.check(f"{name} runs to its end", False, f"{type(error).__name__}: {error}")
        self._rows[-1].seconds = time.perf_counter() - begun

    def set_up(self, seconds: float) -> None:
        """Count what came before the parts."""
        self._rows.append(
            _Row("set-up", "The base, the image and its neighbours are built.", seconds=seconds)
        )

    def report(self) -> None:
        """Print the table, what failed, and the count alone on the last line."""
        whole = _Row(
            "total",
            "",
            sum(row.checks for row in self._rows),
            len(self.failures),
            sum(row.seconds for row in self._rows),
        )
        print(f"\n{'part':<11}{'checks':>7}{'failed':>8}{'seconds':>9}  what was run")
        for row in [*self._rows, whole]:
            print(f"{row.name:<11}{row.checks:>7}{row.failed:>8}{row.seconds:>9.0f}  {row.what}".rstrip())
        for failure in self.failures:
            print(f"failed: {failure}")
        print(f"\n{whole.checks - whole.failed} passed, {whole.failed} failed", flush=True)
