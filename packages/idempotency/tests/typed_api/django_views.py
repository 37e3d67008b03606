"""Read by type checkers, with Django's stubs, never run: views that claim, and a record in Django's transaction."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import assert_type

from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from rest_framework.request import Request
from rest_framework.response import Response

from idempotency import Policy, current_claim
from idempotency.django import protect
from idempotency.django.rest_framework import IdempotentAPIView
from idempotency.stores.django import SyncDjangoStore

store = SyncDjangoStore("default")


@protect
def charge(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"charge": 1})


@protect(policy=Policy.at_most_once())
async def charge_later(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"charge": 1})


assert_type(charge(HttpRequest()), JsonResponse)
protect(5)  # type: ignore[call-overload]


def order(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        running = current_claim()
        if running is not None:
            outcome = running.outcome(HttpResponse(b"{}"))
            assert_type(store.complete_in(connection, running.claim, outcome, retention=60.0), bool)
    return HttpResponse(b"{}")


store.complete_in("default")  # type: ignore[call-arg]


class Charges(IdempotentAPIView):
    idempotency_policy = Policy(required=True)

    def post(self, request: Request) -> Response:
        return Response({"charge": 1}, status=201)
