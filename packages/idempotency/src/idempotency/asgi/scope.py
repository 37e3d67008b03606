"""
Keeps the library's entries in an ASGI scope while its request runs.

The application gets the caller's own scope, not a copy, because outer layers read what routers and inner layers write
into it (`route`, `path_params`, `user`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from idempotency._core.types import StorageKey
from idempotency.asgi.before_handler import BEFORE_HANDLER
from idempotency.asgi.types import Scope
from idempotency.engine.current_claim import Frame, active, covering, encloses, without

__all__ = [
    "RUNS",
    "enter",
    "hide_bypasses",
    "is_http2",
    "is_of_another_run",
    "joined_run",
    "leave",
    "restore",
]

RUNS: Final = "idempotency.runs"
"""
The scope entry with the runs of this request, outermost first, for another middleware inside (E10).

It is not a context variable, because requests that the handler makes, and the next request of a pipelined connection,
would inherit that.
"""

# Extensions by which a body reaches the client without passing the recorder (E6).
_BYPASSING_EXTENSIONS = frozenset(
    {
        "http.response.early_hint",
        "http.response.pathsend",
        "http.response.push",
        "http.response.trailers",
        "http.response.zerocopysend",
    }
)


Hidden: TypeAlias = tuple[Mapping[str, Any], Mapping[str, Any]] | None
"""The server's extensions, and those that the application sees; None if nothing had to be hidden."""


def enter(scope: Scope, frame: Frame) -> Hidden:
    """
    Note in *scope* that *frame* is running, and hide the extensions that would bypass the record (E6).

    Returns:
        The hidden extensions, for `leave`.
    """
    scope[RUNS] = (*scope[RUNS], frame) if RUNS in scope else (frame,)
    return hide_bypasses(scope) if scope.get("extensions") else None


def is_http2(scope: Scope) -> bool:
    """Whether the request came over HTTP/2 or 3, which forbid Connection (RFC 9113, 8.2.2; RFC 9114, 4.2)."""
    return str(scope.get("http_version", "1.1")).startswith(("2", "3"))


def hide_bypasses(scope: Scope) -> Hidden:
    """Hide the extensions that would bypass the record (E6); returns what `restore` needs."""
    extensions = scope.get("extensions")
    if not extensions or _BYPASSING_EXTENSIONS.isdisjoint(extensions):
        return None
    shown = {name: value for name, value in extensions.items() if name not in _BYPASSING_EXTENSIONS}
    scope["extensions"] = shown
    return extensions, shown


def leave(scope: Scope, frame: Frame, hidden: Hidden) -> None:
    """Remove *frame* from *scope*, and put back what was hidden."""
    runs = scope.pop(RUNS, ())
    if len(runs) > 1:
        scope[RUNS] = without(frame, runs)
    if BEFORE_HANDLER in scope:
        del scope[BEFORE_HANDLER]
    if hidden is not None:
        restore(scope, hidden)


def restore(scope: Scope, hidden: Hidden) -> None:
    """Put back what `hide_bypasses` hid, and keep what the application added."""
    if hidden is None:
        return
    extensions, shown = hidden
    now = scope.get("extensions")
    if now is shown:
        added = {name: value for name, value in shown.items() if extensions.get(name, shown) is not value}
        scope["extensions"] = {**extensions, **added} if added else extensions
    elif isinstance(now, Mapping):  # the application replaced them by its own, made from those it saw
        bypassing = {name: value for name, value in extensions.items() if name in _BYPASSING_EXTENSIONS}
        scope["extensions"] = {**bypassing, **now}


def joined_run(scope: Scope, key: StorageKey) -> Frame | None:
    """The run of this request that a claim of *key* joins: of a middleware, or of a decorated function inside it."""
    runs: tuple[Frame, ...] = scope.get(RUNS, ())
    for frame in runs:
        if frame.claim.key == key and not frame.over:
            return frame
    innermost = active.get()
    return covering(key, innermost) if runs and encloses(runs[-1], innermost) else None


def is_of_another_run(scope: Scope) -> bool:
    """
    Whether the current context was inherited from a run that this request does not belong to.

    This may be the run of the connection's previous request, or the run that started the server or sent the request.
    """
    innermost = active.get()
    if innermost is None:
        return False
    runs: tuple[Frame, ...] = scope.get(RUNS, ())
    return not runs or not encloses(runs[-1], innermost)
