"""The types of PEP 3333 from typeshed, so that applications and servers of any framework fit."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

__all__ = ["Environ", "ExceptionInfo", "HeaderList", "StartResponse", "WSGIApp", "Write"]

Environ: TypeAlias = dict[str, Any]
"""The environment of a request: a real dict (PEP 3333), which the application may change."""

HeaderList: TypeAlias = list[tuple[str, str]]
Write: TypeAlias = Callable[[bytes], object]
ExceptionInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

    WSGIApp: TypeAlias = WSGIApplication
else:
    StartResponse = WSGIApp = Callable[..., Any]
