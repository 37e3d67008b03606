"""
The `idempotency` command: shows the records of any store, frees keys, purges, checks a set-up, and runs a demo.

Exit codes are part of the interface:

    0   done, or found
    1   there is no such record
    2   the store cannot be reached, or its driver is not installed
    3   something is wrong: a refused release, a record that cannot be read, a finding of the doctor
    64  wrong usage of the command line

Results go to standard output, as text, or with `--json` as one JSON object per line; errors go to standard error.
Response bodies are shown only by `show --show-outcome`, owners never.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import unquote

from idempotency._core.description import STATES, outcome_kind, state_name
from idempotency._core.errors import InvalidKey, StoreError, StoreUnavailable
from idempotency._core.key import parse_key, storage_key
from idempotency._core.printable import printable
from idempotency._core.types import Claim, Record, StorageKey, key_id
from idempotency.counts.record import is_count
from idempotency.store import SyncInspectable, SyncPurgeable, SyncStore

__all__ = ["main"]

OK, ABSENT, UNAVAILABLE, WRONG, USAGE = 0, 1, 2, 3, 64

_EPILOG: Final = "Exit codes: 0 done or found, 1 absent, 2 store unavailable, 3 something is wrong, 64 usage."


def main(argv: Sequence[str] | None = None, *, store: SyncStore | None = None) -> int:
    """
    Run one command and return its exit code.

    Args:
        store: The store to use if the command line names none; it stays open.
    """
    try:
        args = _parser().parse_args(argv)
    except SystemExit as end:  # after --help, or a usage error
        return OK if end.code is None else int(end.code)
    try:
        code: int
        if not args.alone:
            given = None if args.store else store
            with closing(_open(args.store)) if given is None else nullcontext(given) as opened:
                code = args.run(opened, args)
        else:
            code = args.run(args)
        sys.stdout.flush()
    except StoreUnavailable as error:
        return _fail(UNAVAILABLE, str(error))
    except StoreError as error:
        return _fail(WRONG, str(error))
    except ImportError as error:
        return _fail(UNAVAILABLE, str(error))
    except UnicodeEncodeError:  # from a store that keeps names as text
        return _fail(ABSENT, "there is no record of this name: it is not UTF-8")
    except (ValueError, InvalidKey) as error:
        return _fail(USAGE, str(error))
    except BrokenPipeError:  # `idempotency list | head`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    return code


def _open(url: str | None) -> SyncStore:
    from idempotency.stores.url import open_sync_store

    return open_sync_store(_existing(url))


def _existing(url: str | None) -> str:
    """
    *url*, after a check that its store may be opened.

    Raises:
        ValueError: No URL was given.
        StoreUnavailable: The URL names a file that does not exist.
    """
    from idempotency.stores.parse_url import hide_urls, parse_store_url

    if not url:
        raise ValueError("which store? give --store URL, or set IDEMPOTENCY_STORE")
    parts = parse_store_url(url)
    path = parts.path.removeprefix("/")
    if parts.scheme == "sqlite" and not parts.hosts and path and not Path(unquote(path)).exists():
        # A store would create the file, and a misspelt path would look like an empty store.
        raise StoreUnavailable(
            hide_urls(f"there is no file {path}: check the path; this command does not create it")
        )
    return url


# The commands.


def _show(store: SyncStore, args: argparse.Namespace) -> int:
    key = _key(args)
    record = store.get(key)
    if record is None:
        return _fail(ABSENT, f"there is no record {key_id(key)}")
    described = _described(record)
    if args.show_outcome and record.outcome is not None:
        described["outcome_text"] = record.outcome.decode("utf-8", "backslashreplace")
    _print([described], args, upright=True)
    return OK


def _list(store: SyncStore, args: argparse.Namespace) -> int:
    _print(list(_listed(_inspectable(store), args)), args)
    return OK


def _listed(store: SyncInspectable, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    prefix = storage_key(args.tenant, "") if args.tenant else ""
    left: int = args.limit
    cursor: str | None = None
    while left > 0:
        page = store.scan(limit=500, cursor=cursor)
        for record in page.records:
            if (
                record.key.startswith(prefix)
                and args.state in {None, state_name(record)}
                and args.id in {None, key_id(record.key)}
                and not is_count(record.key)
            ):
                yield _described(record)
                left -= 1
                if left == 0:
                    return
        cursor = page.cursor
        if cursor is None:
            return


def _release(store: SyncStore, args: argparse.Namespace) -> int:
    key = _key(args)
    try:
        record = store.get(key)
    except StoreUnavailable:
        raise
    except StoreError as error:
        if not args.force:
            return _fail(WRONG, f"{error} (--force deletes it)")
        return _done(args, key, "unreadable", freed=_inspectable(store).forget(key))
    if record is None:
        return _fail(ABSENT, f"there is no record {key_id(key)}")
    state = state_name(record)
    if state == "completed":
        if not args.force:
            return _fail(
                WRONG,
                f"record {key_id(key)} is completed, and retries are answered from it; --force forgets it, and the "
                "next request with its key runs again",
            )
        return _done(args, key, state, freed=_inspectable(store).forget(key))
    if state == "running" and not args.force:
        return _fail(
            WRONG,
            f"record {key_id(key)} is running, with {record.lease_left:.1f} s of its lease left; wait until the lease "
            "is over, or use --force if you know that its process is gone: a second run may begin at once",
        )
    # Released by its owner: if another owner took over since `get`, nothing happens.
    claim = Claim(key, record.owner, record.attempt, record.fence)
    return _done(args, key, state, freed=store.release(claim))


def _done(args: argparse.Namespace, key: StorageKey, state: str, *, freed: bool) -> int:
    if not freed:
        return _fail(WRONG, f"record {key_id(key)} changed in the meantime; show it again")
    _print([{"key_id": key_id(key), "was": state, "freed": True}], args, upright=True)
    return OK


def _purge(store: SyncStore, args: argparse.Namespace) -> int:
    deleted = 0
    if isinstance(store, SyncPurgeable):  # other stores delete expired records themselves
        began = time.monotonic()
        while batch := store.purge(limit=args.batch):
            deleted += batch
            # SQLite's writers do not queue, so leave half of the time to them.
            time.sleep(time.monotonic() - began)
            began = time.monotonic()
    _print([{"deleted": deleted}], args, upright=True)
    return OK


def _doctor(store: SyncStore, args: argparse.Namespace) -> int:
    from idempotency.cli.doctor import examine

    if not args.store:
        raise ValueError("doctor opens the store itself: give --store URL")
    findings = []
    for finding in examine(store, args.store):
        findings.append(finding)
        if args.json:
            _print([finding._asdict()], args)
    if not args.json:
        _print([finding._asdict() for finding in findings], args)
    return WRONG if any(finding.verdict in {"warn", "fail"} for finding in findings) else OK


def _demo(_: argparse.Namespace) -> int:
    from idempotency.cli.demo import run_demo
    from idempotency.cli.demo.screen import Screen

    return run_demo(Screen(sys.stdout))


def _dashboard(args: argparse.Namespace) -> int:
    from idempotency.dashboard.serve import serve
    from idempotency.stores.url import open_store

    serve(open_store(_existing(args.store)), port=args.port, writable=args.writable)
    return OK


# Records for people.


def _key(args: argparse.Namespace) -> StorageKey:
    if args.stored:
        return StorageKey(args.key)
    key: str = args.key
    if key.startswith('"'):  # as it stands in the header
        key = parse_key([key.encode()]) or ""
    return storage_key(args.tenant, key)


def _described(record: Record) -> dict[str, Any]:
    """The columns shown for a record: its name and figures, never its owner or the content of its outcome."""
    described: dict[str, Any] = {
        "key": record.key,
        "key_id": key_id(record.key),
        "state": state_name(record),
        "attempt": record.attempt,
        "fence": record.fence,
        "age_s": round(record.age, 3),
        "expires_in_s": round(record.expires_in, 3),
    }
    if record.outcome is None:
        return described | {"lease_left_s": round(record.lease_left, 3)}
    return described | {
        "outcome": outcome_kind(record.outcome),
        "outcome_bytes": len(record.outcome),
    }


def _inspectable(store: SyncStore) -> SyncInspectable:
    if not isinstance(store, SyncInspectable):
        raise StoreError(f"{type(store).__name__} can neither list nor forget records")
    return store


def _print(rows: Iterable[dict[str, Any]], args: argparse.Namespace, *, upright: bool = False) -> None:
    rows = list(rows)
    if args.json:
        for row in rows:
            print(json.dumps(row))
    elif upright:
        for row in rows:
            width = max(map(len, row))
            for name, value in row.items():
                print(f"{name.ljust(width)}  {printable(str(value), sys.stdout.encoding)}")
    elif rows:
        names = list(dict.fromkeys(name for row in rows for name in row))
        encoding = sys.stdout.encoding
        table = [names, *([printable(str(row.get(name, "")), encoding) for name in names] for row in rows)]
        widths = [max(len(line[column]) for line in table) for column in range(len(names))]
        for line in table:
            print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _fail(code: int, message: str) -> int:
    print(f"idempotency: {printable(message, sys.stderr.encoding)}", file=sys.stderr)
    return code


# The command line.


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with 64; argparse would exit with 2, which means here that the store is unavailable."""
        from idempotency.stores.parse_url import hide_urls

        self.print_usage(sys.stderr)
        raise SystemExit(_fail(USAGE, hide_urls(message)))  # the message may quote a store's URL


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="idempotency", description="Show and manage the records of an idempotency store.", epilog=_EPILOG
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=_EPILOG
        )
        added.set_defaults(run=run, alone=False)
        added.add_argument(
            "--store",
            metavar="URL",
            default=os.environ.get("IDEMPOTENCY_STORE"),
            help="sqlite:///path, redis://..., postgresql://...; default: the variable IDEMPOTENCY_STORE",
        )
        added.add_argument("--json", action="store_true", help="print one JSON object per line")
        return added

    def one_key(added: argparse.ArgumentParser) -> None:
        added.add_argument("key", metavar="KEY", help="the client's key, with or without its quotes")
        added.add_argument(
            "--tenant", default="", help="whose key it is; for a decorated function, its operation"
        )
        added.add_argument(
            "--stored", action="store_true", help="KEY is the name of a record, as `list` shows it"
        )

    show = command("show", _show, "show one record")
    one_key(show)
    show.add_argument(
        "--show-outcome",
        action="store_true",
        help="also show the outcome, such as the headers and body of a response",
    )
    listing = command("list", _list, "list records")
    listing.add_argument("--tenant", default="", help="only records of this tenant")
    listing.add_argument(
        "--state",
        choices=STATES,
        help="only records in this state; abandoned: the lease is over, nothing recorded",
    )
    listing.add_argument("--id", metavar="KEY_ID", help="only the record with this key_id, as logs show it")
    listing.add_argument(
        "--limit", type=_positive, default=100, help="the most records to list; default: 100"
    )
    release = command("release", _release, "free the key of an abandoned run")
    one_key(release)
    release.add_argument(
        "--force", action="store_true", help="also if the record is running, completed or cannot be read"
    )
    purge = command("purge", _purge, "delete expired records")
    purge.add_argument(
        "--batch", type=_positive, default=1_000, help="records per transaction; default: 1000"
    )
    command("doctor", _doctor, "examine a set-up and say which promises it can keep")
    text = "watch payments with and without protection, while workers are killed and answers lost"
    demo = commands.add_parser("demo", help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=_EPILOG)
    demo.set_defaults(run=_demo, alone=True)
    page = command("dashboard", _dashboard, "serve a page that shows the records, on this machine only")
    page.set_defaults(alone=True)
    page.add_argument("--port", type=int, default=8008, help="default: 8008; 0 takes a free port")
    page.add_argument(
        "--writable", action="store_true", help="let the page release, forget and purge; default: read-only"
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
