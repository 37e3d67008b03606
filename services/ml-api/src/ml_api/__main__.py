"""The `ml-api` command. Each subcommand imports only the libraries that it needs, so that it starts quickly."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ml_api import Unusable

if TYPE_CHECKING:
    from ml_api.settings import Settings

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code: 0 done, 1 failed, 2 could not start (one line on stderr says why)."""
    options = _parser().parse_args(argv)
    # Imports make many objects that stay and hardly any garbage, so collections during imports only cost time.
    gc.set_threshold(1_000_000)
    try:
        code: int = options.command(options)
    except Unusable as error:
        print(f"ml-api: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of the output closed the pipe; Python must not write to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _serve(options: argparse.Namespace) -> int:
    from ml_api.server.serve import serve
    from ml_api.settings import PREFIX, load_settings

    if options.model is not None:
        os.environ[f"{PREFIX}ONLY_MODELS"] = str(options.model.absolute())  # workers read it too
    settings = load_settings()
    _check_store(settings)
    serve(settings, host=options.host, port=options.port, workers=options.workers or settings.workers)
    return 0


def _demo(options: argparse.Namespace) -> int:
    from ml_api.demo import demo

    with _file("read", options.body):
        body = options.body.read_bytes() if options.body is not None else None
    return demo(body=body)


def _train(options: argparse.Namespace) -> int:
    from ml_api.training import train

    with _file("written", options.out):
        train(options.out)
    return 0


def _report(options: argparse.Namespace) -> int:
    from ml_api.serving.registry import BUNDLED_MODEL
    from ml_api.training.report import write_report
    from ml_api.training.verdict import verdict
    from predictor import Manifest, PredictorError, manifest_path

    model = options.model or BUNDLED_MODEL
    try:
        with _file("written", options.out):
            write_report(options.out, model)
        print(verdict(Manifest.read(manifest_path(model)).metrics))
    except PredictorError as error:
        raise Unusable(str(error)) from error
    print(f"wrote {options.out}")
    return 0


def _check(_: argparse.Namespace) -> int:
    """Check whether the service would start: settings, models, tracing, store."""
    from ml_api.observability.tracing import check_tracing
    from ml_api.serving.registry import load_models
    from ml_api.settings import load_settings

    settings = load_settings()
    print("settings  ok")
    models = load_models(settings)
    print(f"models    ok: {models.described or 'fixed rules'}")
    check_tracing()
    answered, found = _check_store(settings)
    print(f"store     {'ok' if answered else 'away'}: {found}")
    return 0 if answered else 1  # the service would start also without its store


def _openapi(_: argparse.Namespace) -> int:
    """Print the OpenAPI document for the current settings; works without an API key."""
    from ml_api.app import document_of
    from ml_api.settings import load_settings

    document = document_of(load_settings(api_key="no-key-is-needed-here"))
    print(json.dumps(document, indent=2))
    return 0


def _check_store(settings: Settings) -> tuple[bool, str]:
    from ml_api.settings import METRICS_DIRECTORY

    # Before prometheus-client is imported: the numbers of earlier processes in such a directory would be added to ours.
    os.environ.pop(METRICS_DIRECTORY, None)
    from ml_api.observability.metrics import Metrics
    from ml_api.stores.backend import check_store

    # Not asyncio.run: at its end it waits for running threads, for example for a slow name lookup.
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(check_store(settings, Metrics()))
    finally:
        loop.close()


@contextlib.contextmanager
def _file(done: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unusable(f"{path} cannot be {done}: {error.strerror}") from error


def _between(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"should be {least} to {most}")
        return int(text)

    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ml-api",
        description="Trading decisions and any LightGBM model over HTTP, safe to retry.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve", help="start the service; settings are ML_SERVICE_* variables or .env"
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    serve.add_argument(
        "--port", type=_between(0, 65535), default=8000, help="0 chooses a free port (default %(default)s)"
    )
    serve.add_argument(
        "--workers", type=_between(1, 64), help="worker processes (default ML_SERVICE_WORKERS, else 1)"
    )
    serve.add_argument(
        "--model", type=Path, help="serve this LightGBM model, or every *.txt of this folder, without trading"
    )
    serve.set_defaults(command=_serve)

    demo = commands.add_parser("demo", help="start a service, send one request twice, show both answers")
    demo.add_argument(
        "--body", type=Path, help="file with your own request body (default: an example with real bars)"
    )
    demo.set_defaults(command=_demo)

    train = commands.add_parser("train", help="train the model again from real market data")
    train.add_argument("--out", type=Path, required=True, help="directory for the model and its manifest")
    train.set_defaults(command=_train)

    report = commands.add_parser("report", help="write a page with charts about the model's quality")
    report.add_argument(
        "-o", "--output", type=Path, dest="out", default=Path("report.html"), help="(default %(default)s)"
    )
    report.add_argument(
        "--model", type=Path, help="a model that `ml-api train` wrote (default: the one in the package)"
    )
    report.set_defaults(command=_report)

    check = commands.add_parser("check", help="check whether settings, models and store are usable")
    check.set_defaults(command=_check)

    openapi = commands.add_parser("openapi", help="print the OpenAPI 3.1 document")
    openapi.set_defaults(command=_openapi)
    return parser


if __name__ == "__main__":
    sys.exit(main())
