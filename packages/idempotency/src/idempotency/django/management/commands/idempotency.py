"""`manage.py idempotency ...`: the `idempotency` command for the store in the project's setting."""

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
    """Passes its arguments to `idempotency.cli.main`, with the store in `IDEMPOTENCY["STORE"]`."""

    help = (
        "Show and manage the records of the project's idempotency store: show, list, release, purge, doctor."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take all arguments, for the command."""
        parser.add_argument("arguments", nargs=REMAINDER, help="such as: list --state abandoned")

    def handle(self, *_args: Any, **options: Any) -> None:
        """Run the command, and exit with its code."""
        given, store = Settings.read().store, None
        if isinstance(given, str) and ":" in given:
            os.environ["IDEMPOTENCY_STORE"] = given  # the command's default for --store
        else:
            os.environ.pop("IDEMPOTENCY_STORE", None)
            try:
                store = open_project_store(given, asynchronous=False)
            except ImproperlyConfigured as error:
                raise CommandError(
                    'the command needs a SyncStore: give one by --store URL, or set IDEMPOTENCY["STORE"] to a URL'
                ) from error
        code = main(options["arguments"], store=store)
        if code:
            sys.exit(code)
