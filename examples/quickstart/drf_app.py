r"""
Django REST framework: a charge that runs once per Idempotency-Key.

From the root of the repository:

    pip install "./packages/idempotency[django]" djangorestframework
    cd examples/quickstart
    python drf_app.py runserver 8000

The first call charges. The second is answered from the record: the same body, and `idempotency-replayed: true`.

    curl -i http://127.0.0.1:8000/charges -H 'Authorization: Bearer alice-1' \
        -H 'Idempotency-Key: "order-1"' -H 'Content-Type: application/json' -d '{"amount": 500}'
    curl -i http://127.0.0.1:8000/charges -H 'Authorization: Bearer alice-2' \
        -H 'Idempotency-Key: "order-1"' -H 'Content-Type: application/json' -d '{"amount": 500}'

Records are in charges.sqlite3 in the current directory, for all processes of this machine. See docs/django.md.
"""

import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.urls import path

if not settings.configured:
    settings.configure(
        DEBUG=True,
        SECRET_KEY="not-a-secret",
        ROOT_URLCONF=__name__,
        INSTALLED_APPS=["rest_framework"],
        REST_FRAMEWORK={"UNAUTHENTICATED_USER": None},
        MIDDLEWARE=["idempotency.django.IdempotencyMiddleware"],
        # A key belongs to the primary key of request.user.
        IDEMPOTENCY={"STORE": "sqlite:///charges.sqlite3"},
    )

from rest_framework import serializers
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response

from idempotency.django.rest_framework import IdempotentAPIView

charges: list[int] = []  # stands for your database
users = {"Bearer alice-1": "alice", "Bearer alice-2": "alice"}  # stands for your check of a token


class User:  # stands for Django's
    is_authenticated = True

    def __init__(self, pk: str) -> None:
        self.pk = pk


class Tokens(BaseAuthentication):
    def authenticate(self, request: Request) -> tuple[User, None]:
        user = users.get(request.headers.get("Authorization", ""))
        if user is None:
            raise AuthenticationFailed
        return User(user), None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"  # a refusal is then a 401


class ChargeSerializer(serializers.Serializer[dict[str, int]]):
    amount = serializers.IntegerField()


class Charges(IdempotentAPIView):
    authentication_classes = [Tokens]
    permission_classes = [IsAuthenticated]

    def post(self, request: Request) -> Response:
        charge = ChargeSerializer(data=request.data)
        charge.is_valid(raise_exception=True)
        charges.append(charge.validated_data["amount"])
        return Response({"charge": len(charges)}, status=201)


urlpatterns = [path("charges", Charges.as_view())]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
else:
    application = get_wsgi_application()  # for `gunicorn drf_app:application`
