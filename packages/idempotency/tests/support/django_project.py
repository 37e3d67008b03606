"""Django is configured once in a process: one project for all tests, whose settings they override."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import mkdtemp
from types import ModuleType
from typing import Any

import django
from django.conf import settings

__all__ = ["URLS", "configure", "migrate", "set_urls"]

URLS = "django_tests_urls"


def configure() -> None:
    """Configure Django, the first time."""
    if settings.configured:
        return
    sys.modules[URLS] = ModuleType(URLS)
    set_urls([])
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": Path(mkdtemp(prefix="django-tests-"), "project.db"),
                "OPTIONS": {"timeout": 20},
            }
        },
        DATA_UPLOAD_MAX_MEMORY_SIZE=None,
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "rest_framework",
            "rest_framework.authtoken",
            "idempotency.django",
        ],
        LOGGING_CONFIG=None,
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],  # the quickest
        ROOT_URLCONF=URLS,
        SECRET_KEY="of the tests",
    )
    django.setup()


def migrate() -> None:
    """Make the tables of the installed applications."""
    from django.core.management import call_command
    from django.db import connection

    call_command("migrate", verbosity=0)
    connection.inc_thread_sharing()  # a test under ASGI uses it from Django's own thread, and closes it


def set_urls(patterns: list[Any]) -> None:
    """Serve *patterns*."""
    from django.urls import clear_url_caches

    sys.modules[URLS].urlpatterns = patterns  # type: ignore[attr-defined]
    clear_url_caches()
