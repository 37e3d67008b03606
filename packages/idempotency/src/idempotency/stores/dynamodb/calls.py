"""Calls DynamoDB through a botocore client, translates its failures, and checks that the clocks agree."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final

from idempotency._runtime.extras import missing

try:
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectionError,  # noqa: A004 - botocore's own
        HTTPClientError,
    )
except ModuleNotFoundError as _error:
    raise missing("dynamodb", "DynamoDBStore", _error) from _error

from idempotency._core.errors import StoreError, StoreUnavailable
from idempotency.stores.dynamodb.item import Attributes

__all__ = ["Calls", "ConditionFailed"]

# Errors that a retry may cure; DynamoDB repeats all others.
_TRANSIENT: Final = frozenset(
    {
        "InternalFailure",
        "InternalServerError",
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
        "ReplicatedWriteConflictException",
        "RequestLimitExceeded",
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
        "TransactionConflictException",
        "TransactionInProgressException",
    }
)


class ConditionFailed(Exception):
    """The item does not meet the condition of the call; *found* is the item, or None if there is none."""

    def __init__(self, found: Attributes | None) -> None:
        super().__init__()
        self.found = found


class Calls:
    """
    A botocore client, its table, and a check of the machine's clock against DynamoDB's.

    Args:
        clock: Seconds since the epoch, for tests; an injected clock is not checked.
        max_clock_skew: Seconds.
    """

    def __init__(
        self, client: Any, table: str, clock: Callable[[], float] | None, max_clock_skew: float
    ) -> None:
        self.client = client
        self.table = table
        self.clock: Callable[[], float] = clock or time.time
        self._compares = clock is None
        self._tolerance = max_clock_skew / 2  # for each clock, so that two differ by at most max_clock_skew

    def __call__(self, method: str, **arguments: Any) -> Any:
        """
        Call *method* of the client on the table.

        Raises:
            ConditionFailed: Nothing was written.
            StoreUnavailable: No answer, or an error that a retry may cure, or this machine's clock is wrong.
            StoreError: An error that a retry will not cure.
        """
        before = self.clock()
        try:
            answer = getattr(self.client, method)(TableName=self.table, **arguments)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code != "ConditionalCheckFailedException":
                raise self._refused(code, error) from error
            answer = error.response
            self._compare(before, answer)
            raise ConditionFailed(answer.get("Item")) from None
        except (ConnectionError, HTTPClientError) as error:
            raise StoreUnavailable(
                f"DynamoDB did not answer ({type(error).__name__}); the call may have taken effect"
            ) from error
        except BotoCoreError as error:
            raise StoreError(
                f"botocore cannot make the call ({type(error).__name__}), and repeating it will not help; look at the "
                "error that this one was raised from, and at the client's region and credentials"
            ) from error
        self._compare(before, answer)
        return answer

    def _refused(self, code: str, error: ClientError) -> StoreError:
        if code in {"ResourceNotFoundException", "ResourceNotFound"}:
            return StoreUnavailable(
                f"there is no table {self.table!r} in this region and account: call create_schema() once, or create it "
                "with the rest of your infrastructure"
            )
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _TRANSIENT or status >= 500:
            return StoreUnavailable(f"DynamoDB refused the call for now ({code or status}); try again")
        return StoreError(
            f"DynamoDB refused the call ({code or status}), and repeating it will not help; look at the error that "
            "this one was raised from"
        )

    def _compare(self, before: float, answer: Mapping[str, Any]) -> None:
        """Check this machine's clock against the server's `Date`, which is in whole seconds."""
        date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        if not self._compares or date is None:
            return
        try:
            theirs = parsedate_to_datetime(date).timestamp()
        except ValueError:
            return
        ahead, behind = before - (theirs + 1.0), theirs - self.clock()
        if max(ahead, behind) > self._tolerance:
            off = f"{ahead:.0f} s ahead of" if ahead > 0 else f"{behind:.0f} s behind"
            raise StoreUnavailable(
                f"this machine's clock is {off} DynamoDB's, so it cannot measure leases: synchronise it (NTP), or "
                "raise max_clock_skew for every caller"
            )
