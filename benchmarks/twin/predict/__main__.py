"""``python -m benchmarks.twin.predict [TRACE …]``: compare glibc's predicted and measured time.

Memory is compared too.  Without arguments, all shipped traces are used.  Needs the extra
``predict``.  Exit codes: 0 memory agrees on every trace; 1 memory differs, a file cannot be written
or scipy is missing; 2 bad arguments; 77 this machine's C library cannot serve as the reference; 130
interrupted, nothing is written.
"""

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path

from kernel.engine.command import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_SKIP,
    EXIT_USAGE,
    OneLineParser,
    positive,
    run,
)
from kernel.engine.output import save, unwritable

#: Default path of the results.
DEFAULT = Path("results") / "validation.json"


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m benchmarks.twin.predict",
        description="Run traces on this machine's glibc and on its twin, and compare their memory "
        "and the measured time with the time predicted from counted steps.",
    )
    parser.add_argument(
        "traces", nargs="*", metavar="TRACE", help="files, or shipped:NAME (default: all shipped)"
    )
    parser.add_argument(
        "--repeats",
        type=positive,
        default=9,
        metavar="N",
        help="measurements of each time, in separate processes; the median is used (default 9)",
    )
    parser.add_argument(
        "--touch",
        choices=("all", "first", "nothing", "read"),
        default="all",
        help="bytes that the program touches in a new block (default all)",
    )
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        default=DEFAULT,
        metavar="FILE",
        help=f"results file (default {DEFAULT})",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of tables"
    )
    return parser


def _why_unwritable(path: Path) -> str:
    """Return the reason why no file can be written at ``path``; '' if it can."""
    if path.is_dir() or path.suffix != ".json":
        return "expected the name of a .json file"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return error.strerror
    return unwritable(path)


def _fail(text: str, code: int) -> int:
    """Print an error.  Returns the exit code ``code``."""
    print(f"benchmarks.twin.predict: {text}", file=sys.stderr)
    return code


def main(argv: list[str] | None = None) -> int:
    """Run the command.  Returns its exit code."""
    options = _parser().parse_args(argv)
    if reason := _why_unwritable(options.output):
        return _fail(f"{options.output}: {reason}", EXIT_USAGE)
    if find_spec("scipy") is None:
        text = "fitting the prices needs the package scipy: pip install -e '.[predict]'"
        return _fail(text, EXIT_FAILED)
    from allocators.base.library import LibraryError
    from benchmarks.trace import shipped
    from benchmarks.twin.predict import programs
    from benchmarks.twin.predict.report import Validation, print_result
    from benchmarks.twin.verify.libc import unavailable, wrong_library
    from benchmarks.workloads import WorkloadError
    from kernel.engine.progress import shown_progress
    from kernel.linux.host.process import HostError

    paths = options.traces or [shipped.PREFIX + name for name in shipped.names()]
    if reason := unavailable():
        if options.json:
            print(json.dumps({"status": "skipped", "reason": reason}))
            return EXIT_SKIP
        return _fail(f"skipped: {reason}", EXIT_SKIP)
    validation = Validation(options.touch, options.repeats, wrong_library())
    try:
        for path in options.traces:
            programs.load_trace(path, options.touch)  # report bad traces before any long work
        with shown_progress("validate") as progress:
            validation.run(paths, progress)
    except KeyboardInterrupt:
        return _fail("interrupted: nothing written", EXIT_INTERRUPTED)
    except WorkloadError as error:
        return _fail(str(error), EXIT_USAGE)
    except (LibraryError, HostError) as error:
        return _fail(str(error), EXIT_FAILED)
    written, failure = save(options.output, validation.text(), "validation")
    print_result(validation, written, as_json=options.json)
    if failure:
        return _fail(f"{failure}; {written or 'no file'} has the results", EXIT_FAILED)
    if validation.unavailable:
        return _fail(f"not a valid reference: {validation.unavailable}", EXIT_SKIP)
    return 0 if validation.exact else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(run("benchmarks.twin.predict", main))
