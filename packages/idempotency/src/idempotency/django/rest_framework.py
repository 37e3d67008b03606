"""
Idempotency for the views of Django REST framework, which authenticate inside.

    class Charges(IdempotentAPIView):
        permission_classes = [IsAuthenticated]

        def post(self, request): ...
"""

from __future__ import annotations

from typing import Any, ClassVar

from rest_framework.exceptions import APIException
from rest_framework.request import Request
from rest_framework.views import APIView

from idempotency._core.policy import Policy
from idempotency.django.views import claim_now

__all__ = ["IdempotentAPIView", "IdempotentMixin"]


class _Answered(APIException):
    """Ends the view: its request has an answer already, which the middleware sends in place of this one."""

    status_code = 409


class IdempotentMixin:
    """
    Put it before `APIView`, or any generic view or view set: claims after authentication, permissions and throttles.

    Attributes:
        idempotency_policy: What is promised; None: what the setting says.
    """

    idempotency_claims_itself: ClassVar[bool] = True
    idempotency_policy: ClassVar[Policy | None] = None

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Called by the framework just before the method that handles the request."""
        super().initial(request, *args, **kwargs)  # type: ignore[misc]
        if claim_now(request, self.idempotency_policy) is not None:
            raise _Answered


class IdempotentAPIView(IdempotentMixin, APIView):
    """An `APIView` whose requests run once per key."""
