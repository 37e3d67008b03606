"""`manage.py idempotency ...`: the `idempotency` command, on the store of the project's setting."""

from __future__ import annotations

import os
import sys
from argparse import REMAINDER, ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from idempotency.cli import main
from idempotency.django.settings import Settings

__all__ = ["Command"]


class Command(BaseCommand):
    """Hands its arguments to `idempotency.cli.main`, with the store that `IDEMPOTENCY["STORE"]` names."""

    help = "Look at the records of the project's idempotency store: show, list, release, purge, doctor."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """All arguments are the command's."""
        parser.add_argument("arguments", nargs=REMAINDER, help="such as: list --state abandoned")

    def handle(self, *_args: Any, **options: Any) -> None:
        """Run it; its exit code is the process's."""
        store = Settings.read().store
        if not isinstance(store, str) or ":" not in store:
            raise CommandError('the command opens its store by a URL: give IDEMPOTENCY["STORE"] as one')
        os.environ["IDEMPOTENCY_STORE"] = store  # what the command opens unless it is told another
        code = main(options["arguments"])
        if code:
            sys.exit(code)
