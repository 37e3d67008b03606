"""
Parses the arguments, runs a command, and maps errors to exit codes.

0: done. 1: the model or a row was refused. 2: wrong usage, or a file cannot be read or written. 130: interrupted.
143: ended by SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from predictor.cli import commands
from predictor.cli.tables import TableError
from predictor.errors import PredictorError, SchemaError
from predictor.manifest import RowPolicy

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of *argv* (default: the process's arguments) and return its exit code."""
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
    except TableError as error:
        return _fail(error, 2)
    except SchemaError as error:
        return _fail(f"{error}{_option(error)}", 1)
    except PredictorError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", 130)
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else error, 2)
    return status


def _natural(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return int(text)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def _option(error: SchemaError) -> str:
    """Say how the command itself would be less strict."""
    if error.policy is None:
        return ""
    nullable = f" or --nullable {error.feature}" if error.policy == "null" else ""
    return f"\npredictor: to let it in, make the manifest with --allow {error.policy}{nullable}"


def _fail(error: Exception | str, status: int) -> int:
    print(f"predictor: {error}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="predictor", description=commands.__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('lightgbm-predictor')}")
    table = parser.add_subparsers(required=True, metavar="command")

    inspect = _command(table, "inspect", commands.inspect)
    inspect.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    _command(table, "verify", commands.verify)
    predict = _command(table, "predict", commands.predict, takes_rows=True)
    predict.add_argument("--raw", action="store_true", help="raw scores instead of the objective's outputs")
    predict.add_argument(
        "--drift", action="store_true", help="print drift counters to stderr at the end; uses one process"
    )
    explain = _command(table, "explain", commands.explain, takes_rows=True)
    explain.add_argument("--top", type=_positive, default=5, metavar="K", help="features per row (default 5)")
    for command in (predict, explain):
        command.add_argument(
            "-o", "--output", type=Path, help=".csv, .jsonl or .parquet; default CSV to stdout"
        )
        command.add_argument(
            "--jobs",
            type=_positive,
            metavar="N",
            help="processes for a large file; default one per processor",
        )

    make = _command(table, "manifest", commands.manifest, takes_rows=True, is_described=False)
    make.add_argument("--name", required=True, help="what the model is for")
    make.add_argument("--version", required=True, help="the version that every prediction states")
    make.add_argument("--classes", default="", help="class labels in output order, separated by commas")
    make.add_argument(
        "--integers", default="", help="features that must be whole numbers, separated by commas"
    )
    make.add_argument(
        "--names", default="", help="the features' names in the rows, in model order, separated by commas"
    )
    make.add_argument("--nullable", help="features that may be missing; default those missing in the rows")
    make.add_argument(
        "--categories", type=Path, help="JSON file: labels by feature, in the order of the codes"
    )
    make.add_argument(
        "--allow",
        action="append",
        default=[],
        choices=list(RowPolicy.model_fields),
        help="what the row policy allows instead of refusing it; may be repeated",
    )
    make.add_argument(
        "--expected",
        metavar="COLUMN",
        help="column with the trained model's own predictions, compared in every row; for several outputs, one column"
        " of lists, or one column per output, separated by commas",
    )
    make.add_argument("--golden", type=_natural, default=8, help="golden rows to record (default 8)")
    make.add_argument(
        "--sample",
        type=_positive,
        default=50_000,
        metavar="N",
        help="rows kept in memory for distributions and golden rows (default 50000); ranges are from all rows",
    )
    make.add_argument("-o", "--output", type=Path, help="default <model>.manifest.json")

    bench = _command(table, "bench", commands.bench, takes_rows=True)
    bench.add_argument("--calls", type=_positive, default=2_000, help="one-row calls to time (default 2000)")
    report = _command(table, "report", commands.report, takes_rows=True)
    report.add_argument("--label", help="column with the true label; adds the quality of the answers")
    report.add_argument(
        "--query",
        metavar="COLUMN",
        help="for a ranking model: column with the query; consecutive rows with the same value are one query",
    )
    for command, implied in ((predict, "; implies --drift"), (report, "")):
        command.add_argument(
            "--reference",
            type=Path,
            metavar="MANIFEST",
            help=f"measure drift against this manifest instead of the model's own{implied}",
        )
    report.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="default report.html")
    return parser


def _command(
    table: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: commands.Command,
    *,
    takes_rows: bool = False,
    is_described: bool = True,
) -> argparse.ArgumentParser:
    summary = (run.__doc__ or "").strip().splitlines()[0]
    parser = table.add_parser(name, help=summary, description=summary)
    parser.add_argument("model", type=Path, help="a LightGBM text model")
    if takes_rows:
        parser.add_argument(
            "rows",
            type=Path,
            help=".csv, .jsonl or .parquet with the features by name, or a folder of them; - reads CSV or JSON lines"
            " from stdin",
        )
    if is_described:
        parser.add_argument("--manifest", type=Path, help="default <model>.manifest.json")
        parser.add_argument(
            "--sha256", help="the SHA-256 that the model file must have; default the manifest's"
        )
    parser.set_defaults(run=run)
    return parser
