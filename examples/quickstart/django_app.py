r"""
Django: a charge that runs once per Idempotency-Key.

From the root of the repository:

    pip install "./packages/idempotency[django]"
    cd examples/quickstart
    python django_app.py runserver 8000

The first call charges. The second is answered from the record: the same body, and `idempotency-replayed: true`.

    curl -i http://127.0.0.1:8000/charges -H 'Authorization: Bearer alice-1' \
        -H 'Idempotency-Key: "order-1"' -H 'Content-Type: application/json' -d '{"amount": 500}'
    curl -i http://127.0.0.1:8000/charges -H 'Authorization: Bearer alice-2' \
        -H 'Idempotency-Key: "order-1"' -H 'Content-Type: application/json' -d '{"amount": 500}'

Records are in charges.sqlite3 in the current directory, for all processes of this machine. See docs/django.md.
"""

import json
import sys
from collections.abc import Callable

from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

charges: list[int] = []  # stands for your database
users = {"Bearer alice-1": "alice", "Bearer alice-2": "alice"}  # stands for your check of a token


def current_user(request: HttpRequest) -> str | None:
    return users.get(request.headers.get("Authorization", ""))


def authenticate(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Stands for Django's `AuthenticationMiddleware`."""

    def middleware(request: HttpRequest) -> HttpResponse:
        return get_response(request) if current_user(request) else HttpResponse(status=401)

    return middleware


def charge(request: HttpRequest) -> JsonResponse:
    charges.append(json.loads(request.body)["amount"])
    return JsonResponse({"charge": len(charges)}, status=201)


if not settings.configured:
    settings.configure(
        DEBUG=True,
        SECRET_KEY="not-a-secret",
        ROOT_URLCONF=__name__,
        MIDDLEWARE=[f"{__name__}.authenticate", "idempotency.django.IdempotencyMiddleware"],
        IDEMPOTENCY={
            "STORE": "sqlite:///charges.sqlite3",
            "PRINCIPAL": current_user,  # by default the primary key of request.user
        },
    )
urlpatterns = [path("charges", charge)]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
else:
    application = get_wsgi_application()  # for `gunicorn django_app:application`
