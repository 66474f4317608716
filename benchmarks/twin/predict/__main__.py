"""``python -m benchmarks.twin.predict [TRACE …]``: predict glibc's time and memory, and measure.

Without traces all that are shipped.  Needs the extra ``predict``.  Exit codes: 0 memory is the same
everywhere, 1 it is not, a file cannot be written or scipy is missing, 2 bad arguments, 77 this
machine cannot serve as truth, 130 interrupted: nothing is written.
"""

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile

from kernel.differential.command import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_SKIP,
    EXIT_USAGE,
    OneLineParser,
    positive,
)

#: Where the results go.
DEFAULT = Path("results") / "validation.json"


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m benchmarks.twin.predict",
        description="Run traces on this machine's glibc and on its twin, and show memory side by "
        "side and time as measured and as predicted from counted steps.",
    )
    parser.add_argument(
        "traces", nargs="*", metavar="TRACE", help="files, or shipped:NAME (default: all shipped)"
    )
    parser.add_argument(
        "--repeats",
        type=positive,
        default=9,
        metavar="N",
        help="fresh processes for each time, of which the median is taken (default 9)",
    )
    parser.add_argument(
        "--touch",
        choices=("all", "first", "nothing", "read"),
        default="all",
        help="what programs do with a new block (default all)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=DEFAULT, metavar="FILE", help=f"default {DEFAULT}"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    return parser


def _no_place(path: Path) -> str:
    """Why no file can be written at ``path``, '' if it can."""
    if path.is_dir() or path.suffix != ".json":
        return "expected the name of a .json file"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, prefix=".validation-"):
            return ""
    except OSError as error:
        return error.strerror


def _complain(text: str, code: int) -> int:
    print(f"benchmarks.twin.predict: {text}", file=sys.stderr)
    return code


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code."""
    options = _parser().parse_args(argv)
    if reason := _no_place(options.output):
        return _complain(f"{options.output}: {reason}", EXIT_USAGE)
    if find_spec("scipy") is None:
        text = "fitting the prices needs the package scipy: pip install -e '.[predict]'"
        return _complain(text, EXIT_FAILED)
    from allocators.base.library import LibraryError
    from benchmarks.trace import shipped
    from benchmarks.twin.predict import programs
    from benchmarks.twin.predict.report import Validation, tell
    from benchmarks.twin.verify.libc import unavailable, wrong_library
    from benchmarks.workloads import WorkloadError
    from kernel.engine.progress import shown_progress
    from kernel.linux.host.process import HostError

    paths = options.traces or [shipped.PREFIX + name for name in shipped.names()]
    if reason := unavailable():
        if options.json:
            print(json.dumps({"status": "skipped", "reason": reason}))
            return EXIT_SKIP
        return _complain(f"nothing validated: {reason}", EXIT_SKIP)
    validation = Validation(options.touch, options.repeats, wrong_library())
    try:
        for path in options.traces:
            programs.load_trace(path, options.touch)  # a mistake answers before anything long
        with shown_progress("validate") as progress:
            validation.run(paths, progress)
        validation.write(options.output)
    except KeyboardInterrupt:
        return _complain("interrupted: nothing written", EXIT_INTERRUPTED)
    except WorkloadError as error:
        return _complain(str(error), EXIT_USAGE)
    except (LibraryError, HostError) as error:
        return _complain(str(error), EXIT_FAILED)
    except OSError as error:
        return _complain(f"{options.output}: {error.strerror}", EXIT_FAILED)
    tell(validation, options.output, as_json=options.json)
    if validation.wrong:
        return _complain(f"no truth here: {validation.wrong}", EXIT_SKIP)
    return 0 if validation.exact else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
