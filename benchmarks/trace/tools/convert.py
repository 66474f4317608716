"""convert: write a trace as Parquet, or in a format of other tools."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.trace import formats
from benchmarks.trace.formats import export
from benchmarks.trace.tools import derive

HELP = "write a trace as Parquet, as Android memory_replay text or as malloc-lab .rep"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("input", type=derive.trace, metavar="IN", help="a trace, or shipped:NAME")
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument(
        "--to",
        choices=[export.PARQUET, *export.WRITERS],
        help="format of OUT (default: by OUT's suffix: .rep is rep; .txt, .gz and .zip are "
        "android; any other is parquet)",
    )
    parser.add_argument(
        "--lenient", action="store_true", help="drop and count impossible or unreadable records"
    )


def run(given: argparse.Namespace, progress: formats.Progress | None) -> Callable[[], None]:
    """Convert; return a function that prints the losses and the name of the output."""
    form = given.to or export.form_of(given.output)
    strict, lost = not given.lenient, {}
    if form == export.PARQUET:
        provenance = formats.convert(given.input, given.output, strict, progress)
    else:
        provenance, lost = export.export(given.input, given.output, form, strict, progress)

    def print_result() -> None:
        formats.report_dropped(given.input, provenance)
        if lost:
            counts = ", ".join(f"{count} × {what}" for what, count in lost.items())
            print(f"{given.output}: the format cannot represent {counts}", file=sys.stderr)
        print(given.output)

    return print_result
