"""Reads the key and the fingerprint of a decorated function's call, once, before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, TypeAlias, TypeVar

from idempotency._core.annotations import signature
from idempotency._core.errors import InvalidKey
from idempotency._core.fingerprint import digest
from idempotency._core.key import storage_key
from idempotency._core.types import Fingerprint, StorageKey
from idempotency.decorators.arguments import encode_argument

__all__ = ["CallReader", "OfArguments"]

T = TypeVar("T")

OfArguments: TypeAlias = (
    Callable[Concatenate[Any, Any, Any, ...], T]
    | Callable[Concatenate[Any, Any, ...], T]
    | Callable[Concatenate[Any, ...], T]
    | Callable[..., T]
)
"""
A function of the decorated function's arguments.

The last form accepts any function. The other forms only help pyright's strict mode to type the parameters of a lambda.
"""


class CallReader:
    """
    Reads calls of one function.

    Args:
        key: Takes the arguments of a call and returns its key.
        fingerprint: Takes the arguments and returns what must be equal in two calls: bytes, or a value that
            `encode_argument` accepts. None: every argument.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        operation: str,
        key: OfArguments[str],
        fingerprint: OfArguments[object] | None,
    ) -> None:
        self._operation = operation
        self._key = key
        self._fingerprint = fingerprint
        self._signature = signature(function)
        self._defaults = {
            parameter.name: _Default(parameter.default)
            for parameter in self._signature.parameters.values()
            if parameter.default is not parameter.empty
        }

    def read(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, max_key_chars: int
    ) -> tuple[StorageKey, Fingerprint]:
        """
        The storage key and the fingerprint of one call; later changes of the arguments do not affect them.

        Raises:
            TypeError: The key is not a string, the arguments do not fit, or an argument cannot be encoded.
            InvalidKey: The key is blank, too long or not Unicode.
        """
        return self._read_key(args, kwargs, max_key_chars), self._read_fingerprint(args, kwargs)

    def ask(self, name: str, function: OfArguments[T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        """
        What *function* says of a call.

        Args:
            name: The parameter of `idempotent` that it was given as.
        Raises:
            TypeError: *function*, or the decorated function, does not take these arguments.
        """
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            if _takes(function, args, kwargs):
                raise
            self._signature.bind(*args, **kwargs)
            raise TypeError(
                f"{name}= of {self._operation} does not take the arguments of this call ({error}). They are passed by "
                "position and by name as in the call: give its parameters the names of the function's"
            ) from None

    def _read_key(self, args: tuple[Any, ...], kwargs: dict[str, Any], max_key_chars: int) -> StorageKey:
        key = self.ask("key", self._key, args, kwargs)
        if not isinstance(key, str):
            raise TypeError(f"key= of {self._operation} must return a str, not {type(key).__name__}")
        if not key.strip():
            raise InvalidKey(f"key= of {self._operation} returned a blank key; every call needs a key")
        if len(key) > max_key_chars:
            raise InvalidKey(
                f"key= of {self._operation} returned {len(key)} characters; at most {max_key_chars} are accepted"
            )
        try:
            return storage_key(self._operation, key)
        except UnicodeEncodeError:
            raise InvalidKey(f"key= of {self._operation} returned a text that is not Unicode") from None

    def _read_fingerprint(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Fingerprint:
        if self._fingerprint is not None:
            chosen = self.ask("fingerprint", self._fingerprint, args, kwargs)
            return digest(b"chosen", chosen if isinstance(chosen, bytes) else self._encode(chosen))
        arguments = self._signature.bind(*args, **kwargs).arguments
        return digest(b"arguments", *self._parts(arguments))

    def _parts(self, arguments: dict[str, Any]) -> Iterator[bytes]:
        # Arguments at their default are left out, so a parameter that a later release adds does not matter.
        for name in sorted(arguments):
            value, default = arguments[name], self._defaults.get(name)
            if default is not None and value is default.value:
                continue
            written = self._encode(value)
            if default is None or written != default.written:
                yield name.encode()
                yield written

    def _encode(self, value: Any) -> bytes:
        try:
            return encode_argument(value)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"cannot tell whether two calls of {self._operation} are the same: {error}; pass fingerprint= "
                "with a callable that picks what counts from the arguments, such as [order.id, order.cents]"
            ) from None


def _takes(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # of a function of C, which has no signature
        return True
    return True


class _Default:
    """The default of a parameter, and its text, or None if it cannot be encoded."""

    __slots__ = ("value", "written")

    def __init__(self, value: Any) -> None:
        self.value = value
        try:
            self.written: bytes | None = encode_argument(value)
        except (TypeError, ValueError):
            self.written = None
