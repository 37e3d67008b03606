"""Translates Redis errors to store errors that say what to do."""

from __future__ import annotations

import ssl

from redis import exceptions as failures

from idempotency._core.errors import CorruptRecord, StoreError, StoreUnavailable

__all__ = ["NeverSent", "closed", "is_gone", "may_have_worked", "to_store_error", "unreachable"]

# The first word of an error reply -> what to do. redis-py keeps the word, or has a class for it.
_ADVICE = {
    "LOADING": "is loading its data set; try again when it is up",
    "MASTERDOWN": "is a replica without its primary; wait for the failover",
    "CLUSTERDOWN": "has no node that serves this key's slot; wait for the failover",
    "TRYAGAIN": "is moving this key's slot; try again",
    "READONLY": "is a replica; point the client at the primary, or at Sentinel",
    "OOM": "is out of memory and, rightly, evicts nothing; raise maxmemory or shorten the retention",
    "BUSY": "is running a long script; wait, or stop that script",
    "MISCONF": "cannot write to its disk and refuses writes; look at its log",
    "NOREPLICAS": "has too few replicas for min-replicas-to-write; bring them back",
    "AUTH": "wants other credentials than the client's; check its user and password",
    "NOAUTH": "wants credentials; give the client a password",
    "NOPERM": "does not let this user run the store's commands; allow EVALSHA, EVAL, GET, SET, DEL, PTTL, "
    "PEXPIREAT, PEXPIRETIME and TIME on the prefix",
}

# redis-py removes the word from errors of these classes.
_OF_CLASS: tuple[tuple[type[Exception], str], ...] = (
    (failures.BusyLoadingError, "LOADING"),
    (failures.MasterDownError, "MASTERDOWN"),
    (failures.ClusterDownError, "CLUSTERDOWN"),
    (failures.TryAgainError, "TRYAGAIN"),
    (failures.ReadOnlyError, "READONLY"),
    (failures.OutOfMemoryError, "OOM"),
    (failures.NoPermissionError, "NOPERM"),
    (failures.AuthenticationError, "AUTH"),
)


def to_store_error(error: Exception) -> StoreError:
    """
    The typed error for the driver's *error*.

    After an error reply the command had no effect; after a lost connection or a timeout that is unknown. Both become
    `StoreUnavailable`, because the reaction is the same: try again (R8).
    """
    refusal = _refused_certificate(error)
    if refusal is not None:
        return StoreUnavailable(
            f"Redis has no certificate that this client accepts ({refusal.verify_message}); point ssl_ca_certs at the "
            "authority that signed it, and connect to a name that it was signed for"
        )
    word = _word(error)
    if word == "WRONGTYPE":
        return CorruptRecord("the value under this key is not a string; look at it before deleting it")
    if word in _ADVICE:
        return StoreUnavailable(f"Redis {_ADVICE[word]} ({word})")
    if isinstance(error, failures.ResponseError):
        if "non deterministic" in str(error) or "PEXPIRETIME" in str(error):
            return StoreUnavailable("this Redis is older than 7.0, the first version the store works with")
        if "DB index" in str(error):
            return StoreUnavailable("Redis has no database of this number; correct it in the URL")
        return StoreUnavailable(
            f"Redis refused the command ({word or 'ERR'}); look at the error this one was raised from"
        )
    return unreachable(error)


def unreachable(error: BaseException) -> StoreUnavailable:
    """The error for no answer: the connection was refused or lost, or the answer did not come in time."""
    name = "ConnectionError" if isinstance(error, NeverSent) else type(error).__name__
    return StoreUnavailable(
        f"no answer from Redis ({name}); the call may or may not have taken effect, and may be repeated"
    )


def closed() -> StoreUnavailable:
    """The error for a closed store; nothing was sent."""
    return StoreUnavailable("the Redis store is closed; open a new one")


def is_gone(error: BaseException) -> bool:
    """
    Whether the connection is lost, or leads to a former primary, so that a new connection may work.

    A timeout does not count, because no time is left for another try.
    """
    if isinstance(error, failures.ConnectionError):
        return _word(error) not in _ADVICE
    return isinstance(error, (failures.ReadOnlyError, failures.InvalidResponse))


class NeverSent(failures.ConnectionError):
    """The connection was lost before the command was written: it had no effect."""


def may_have_worked(error: Exception) -> bool:
    """Whether the command may have had an effect: not if it was never sent, or a former primary refused it."""
    return not isinstance(error, (NeverSent, failures.ReadOnlyError))


def _refused_certificate(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error


def _word(error: Exception) -> str:
    for kind, word in _OF_CLASS:
        if isinstance(error, kind):
            return word
    first = str(error).partition(" ")[0]
    return first if first.isupper() else ""
