"""Creates the table: one partition key, billed per request, with expired items deleted by DynamoDB."""

from __future__ import annotations

from typing import Final

from botocore.exceptions import WaiterError

from idempotency._core.errors import StoreError, StoreUnavailable
from idempotency.stores.dynamodb.calls import Calls
from idempotency.stores.dynamodb.item import ID

__all__ = ["create_table"]

_ENABLED: Final = frozenset({"ENABLED", "ENABLING"})


def create_table(calls: Calls) -> None:
    """Create the table if it is missing, and enable its time to live; many processes may do so at once."""
    if not _is_there(calls):
        try:
            calls(
                "create_table",
                AttributeDefinitions=[{"AttributeName": ID, "AttributeType": "S"}],
                KeySchema=[{"AttributeName": ID, "KeyType": "HASH"}],
                BillingMode="PAY_PER_REQUEST",
            )
        except StoreError:  # another process may have been quicker
            if not _is_there(calls):
                raise
    try:
        waiter = calls.client.get_waiter("table_exists")
        waiter.wait(TableName=calls.table, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    except WaiterError as error:
        raise StoreUnavailable(f"table {calls.table!r} is still not active; try again") from error
    if not _expires(calls):
        try:
            calls("update_time_to_live", TimeToLiveSpecification={"Enabled": True, "AttributeName": "ttl"})
        except StoreError:
            if not _expires(calls):
                raise


def _is_there(calls: Calls) -> bool:
    try:
        calls("describe_table")
    except StoreUnavailable as error:
        code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
        if code != "ResourceNotFoundException":
            raise
        return False
    return True


def _expires(calls: Calls) -> bool:
    described = calls("describe_time_to_live")["TimeToLiveDescription"]
    return described.get("TimeToLiveStatus") in _ENABLED
