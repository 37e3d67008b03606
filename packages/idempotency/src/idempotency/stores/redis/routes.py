"""
Says where commands go, and how to connect there: to one node, to the primary of a Sentinel, or to nodes of a cluster.

In a cluster the store asks the client which node holds a key. The store opens its own connections, with the settings of
the client's pool (address, credentials, TLS), but without the driver's retries and decoding: a claim must not depend on
a hidden retry, or on a pool that other callers have used up.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

__all__ = ["Route", "route_of_node", "route_of_pool", "sentinels_of"]

# Settings of the client that the store does not use, because it has its own timeouts, retries and decoding.
_NOT_USED = frozenset(
    {
        "retry",
        "retry_on_error",
        "retry_on_timeout",
        "health_check_interval",
        "decode_responses",
        "protocol",
        "socket_timeout",
        "socket_connect_timeout",
        "max_connections",
        "himport_registry",
        "event_dispatcher",
    }
)


class Route(NamedTuple):
    """
    One place to send commands to.

    Attributes:
        place: Identifies the place: (host, port) in a cluster, None if there is only one place.
        connect: Makes a connection that is not open yet.
    """

    place: Hashable
    connect: Callable[[], Any]


def route_of_pool(pool: Any, **ours: Any) -> Route:
    """
    The one place that a client's pool leads to; *ours* are the store's own settings.

    Raises:
        ValueError: The pool leads to replicas, which lag behind and refuse writes.
    """
    if getattr(pool, "is_master", True) is False:
        raise ValueError("this client reads from replicas; make the store with Sentinel.master_for(...)")
    return Route(None, lambda: _make(pool.connection_class, pool.connection_kwargs, ours))


def route_of_node(connection_class: Any, settings: Mapping[str, Any], **ours: Any) -> Route:
    """One node of a cluster; *ours* are the store's own settings."""
    place = (str(settings["host"]), int(settings["port"]))
    return Route(place, lambda: _make(connection_class, settings, ours))


def sentinels_of(client: Any) -> list[Any]:
    """The Sentinel clients of *client*, which closing *client* does not close."""
    pool = getattr(client, "connection_pool", None)
    manager = getattr(pool, "sentinel_manager", None)
    return list(getattr(manager, "sentinels", ()))


def _make(connection_class: Any, settings: Mapping[str, Any], ours: Mapping[str, Any]) -> Any:
    theirs = {
        name: value
        for name, value in settings.items()
        if name not in _NOT_USED and not name.startswith(("maint_", "maintenance_", "orig_", "oss_"))
    }
    if "path" in settings:  # a connection by Unix socket does not take this setting
        ours = {name: value for name, value in ours.items() if name != "socket_connect_timeout"}
    return connection_class(**theirs, **ours, protocol=2)
