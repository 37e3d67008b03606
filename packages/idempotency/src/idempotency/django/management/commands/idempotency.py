"""`manage.py idempotency ...`: the `idempotency` command, on the store of the project's setting."""

from __future__ import annotations

import os
import sys
from argparse import REMAINDER, ArgumentParser
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from idempotency.cli import main
from idempotency.django.settings import Settings, open_project_store

__all__ = ["Command"]


class Command(BaseCommand):
    """Hands its arguments to `idempotency.cli.main`, with the store that `IDEMPOTENCY["STORE"]` names."""

    help = "Look at the records of the project's idempotency store: show, list, release, purge, doctor."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """All arguments are the command's."""
        parser.add_argument("arguments", nargs=REMAINDER, help="such as: list --state abandoned")

    def handle(self, *_args: Any, **options: Any) -> None:
        """Run it; its exit code is the process's."""
        given, store = Settings.read().store, None
        if isinstance(given, str) and ":" in given:
            os.environ["IDEMPOTENCY_STORE"] = given  # what the command opens unless it is told another
        else:
            os.environ.pop("IDEMPOTENCY_STORE", None)
            try:
                store = open_project_store(given, asynchronous=False)
            except ImproperlyConfigured as error:
                raise CommandError(
                    'the command takes a SyncStore: name another by --store URL, or give IDEMPOTENCY["STORE"] as a URL'
                ) from error
        code = main(options["arguments"], store=store)
        if code:
            sys.exit(code)
