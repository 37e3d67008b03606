"""Django is configured once in a process: one project for all tests, whose settings they override."""

from __future__ import annotations

import atexit
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import django
import pymysql
from django.conf import settings
from psycopg.conninfo import conninfo_to_dict

__all__ = ["URLS", "add_database", "configure", "database_settings", "migrate", "set_urls"]

URLS = "django_tests_urls"


def configure() -> None:
    """Configure Django, the first time."""
    if settings.configured:
        return
    sys.modules[URLS] = ModuleType(URLS)
    set_urls([])
    folder = TemporaryDirectory(prefix="django-tests-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": Path(folder.name, "project.db"),
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


def database_settings(vendor: str, url: str) -> dict[str, Any]:
    """
    The entry of `DATABASES` for a server of the tests.

    Args:
        vendor: "postgresql" or "mysql", which MariaDB is too.
        url: As the fixtures `postgres_url` and `mariadb_server_url` give it.
    """
    if vendor == "postgresql":
        given = conninfo_to_dict(url)
        where = {
            "NAME": given.get("dbname", "postgres"),
            "USER": given.get("user", ""),
            "HOST": given["host"],
        }
    else:
        parts = urlsplit(f"//{url}")
        where = {
            "NAME": parts.path.lstrip("/"),
            "USER": parts.username,
            "PASSWORD": parts.password or "",
            "HOST": parse_qs(parts.query).get("unix_socket", [parts.hostname])[0],
            "PORT": parts.port,
        }
    return {"ENGINE": f"django.db.backends.{vendor}", **where}


def add_database(vendor: str, url: str, *, alias: str = "") -> None:
    """Make a server of the tests known to the project, under *alias*, or its vendor's name."""
    from django.db import connections

    if vendor == "mysql":
        pymysql.install_as_MySQLdb()  # Django asks for mysqlclient, which needs a compiler
    alias = alias or vendor
    connections.settings[alias] = connections.configure_settings(
        {"default": {}, alias: database_settings(vendor, url)}
    )[alias]


def migrate() -> None:
    """Make the tables of the installed applications."""
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


def set_urls(patterns: list[Any]) -> None:
    """Serve *patterns*."""
    from django.urls import clear_url_caches

    sys.modules[URLS].urlpatterns = patterns  # type: ignore[attr-defined]
    clear_url_caches()
