"""An ordinary view. What it knows of idempotency is a name for the order that it is asked to place."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from idempotency import current_claim
from orders.models import Order


@csrf_exempt  # an API: its callers bring a token of their own
@require_POST
def place_order(request: HttpRequest) -> HttpResponse:
    """Place an order: a second attempt, after a first that died, finds what that one wrote."""
    sku = request.POST.get("sku", "")
    if not sku:
        return JsonResponse({"error": "say which sku"}, status=422)
    claim = current_claim()
    assert claim is not None, "the policy requires a key, so every order has a claim"
    order, _ = Order.objects.get_or_create(reference=claim.derive("order"), defaults={"sku": sku})
    return JsonResponse({"order": order.pk, "sku": order.sku}, status=201)
