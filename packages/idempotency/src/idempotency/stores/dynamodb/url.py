"""`dynamodb://table`: opens a store with its own client."""

from __future__ import annotations

from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import NoRegionError

from idempotency.stores.dynamodb import DynamoDBStore, SyncDynamoDBStore
from idempotency.stores.parse_url import StoreURL, read_options, refuse

__all__ = ["open_dynamodb"]

_TRIES = 3
_CONNECTIONS = 10


def open_dynamodb(parts: StoreURL, sync: bool) -> DynamoDBStore | SyncDynamoDBStore:
    """See `idempotency.stores.url`. boto3 finds the credentials in its usual places."""
    if len(parts.hosts) != 1 or parts.path.strip("/") or parts.user or parts.hosts[0][1]:
        refuse(parts, "takes only the name of a table; region, endpoint and the rest are options")
    options: dict[str, Any] = read_options(
        parts, {"region": str, "endpoint": str, "deadline": float, "max_clock_skew": float}
    )
    seconds = options.pop("deadline", 5.0) / _TRIES / 2  # half to connect, half to wait for the answer
    config = Config(
        connect_timeout=seconds,
        read_timeout=seconds,
        retries={"total_max_attempts": _TRIES, "mode": "standard"},
        max_pool_connections=_CONNECTIONS,
    )
    region, endpoint = options.pop("region", None), options.pop("endpoint", None)
    try:
        client = boto3.client("dynamodb", region_name=region, endpoint_url=endpoint, config=config)
    except NoRegionError:
        refuse(parts, "needs the option region, or a region where boto3 finds its configuration")
    (table, _), *_ = parts.hosts
    if sync:
        return SyncDynamoDBStore(client, table=table, owns_client=True, **options)
    return DynamoDBStore(client, table=table, owns_client=True, max_threads=_CONNECTIONS, **options)
