"""``python -m kernel.linux.replay``: record memory calls; compare a recording with the model.

record [-o FILE] [--no-aslr] -- COMMAND…   run COMMAND and record its memory calls
FILE [--maps FILE] [--json] [--verbose]    replay a recording or an strace log
trial [--keep FOLDER] [NAME…]              record and replay real programs, print a table

Exit codes of a replay: 0 nothing differs, 1 something differs, 2 the file cannot be read, 130
interrupted.  Exit codes of a recording: the command's own (128 + the signal that ended it), 126 or
127 if the command cannot be run, 77 if recording is impossible, 2 if the file cannot be written.
Exit codes of a trial: 0 nothing differs; 1 something differs, a run failed, or more than 1 % of the
calls are not comparable; 2 no program has the given name, or the folder cannot be written; 77
recording is impossible.
"""

import json
import sys
import tempfile
from pathlib import Path

from kernel.engine.command import OneLineParser, run
from kernel.engine.output import unwritable

STRACE = "strace -f -y -e trace=%memory,%process,%ipc,io_setup,io_destroy,prlimit64 -o FILE COMMAND"


def _record_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m kernel.linux.replay record",
        description="Run a program and record its memory system calls, with the maps at each exec "
        "and at the end.  Ctrl-C reaches the program as usual; three within two seconds kill it.  "
        "The calls recorded so far are kept.",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write, gzip if it ends in .gz (default: the command's name + .calls.gz)",
    )
    parser.add_argument(
        "--no-aslr",
        action="store_true",
        help="disable address randomisation, as setarch -R does",
    )
    parser.add_argument(
        "command", nargs="+", metavar="COMMAND", help="program to run, with its arguments"
    )
    return parser


def _replay_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m kernel.linux.replay",
        description="Replay a recording on the kernel model; compare the result of every call, and "
        "the maps at the end.  'record -- COMMAND' makes a recording.",
        epilog=f"An strace log can be replayed too; make it with: {STRACE}",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="recording or strace log")
    parser.add_argument(
        "--maps",
        type=Path,
        metavar="FILE",
        help="copy of the program's /proc/PID/maps at its exec, for an strace log",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="list each process and each call that is not comparable",
    )
    return parser


def _record(arguments: list[str]) -> int:
    own, command = arguments, []
    if "--" in arguments:
        place = arguments.index("--")
        own, command = arguments[:place], arguments[place + 1 :]
    parser = _record_parser()
    if not command and "-h" not in own and "--help" not in own:
        parser.error("no command; add -- COMMAND")
    options = parser.parse_args([*own, "--", *command])
    from kernel.linux.replay.recorder import CannotRecordError, record

    name = Path(command[0]).name or "program"
    path = options.output or Path(f"{name}.calls.gz")
    if reason := unwritable(path):
        print(f"record: {path}: {reason}", file=sys.stderr)
        return 2
    try:
        code, calls = record(command, path, aslr=not options.no_aslr)
    except CannotRecordError as error:
        print(f"record: {error}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"record: {path}: {error.strerror or error}", file=sys.stderr)
        return 2
    print(f"record: {calls} calls in {path}", file=sys.stderr)
    return code


def _replay(arguments: list[str]) -> int:
    options = _replay_parser().parse_args(arguments)
    from kernel.linux.replay import report
    from kernel.linux.replay.log import LogError
    from kernel.linux.replay.run import replay

    try:
        result = replay(options.file, options.maps)
    except LogError as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(report.as_json(result), indent=1))
    else:
        print(report.text(result, verbose=options.verbose))
    return int(result.differ)


def _trial_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m kernel.linux.replay trial",
        description="Run real programs with the recorder and with strace, with and without address "
        "randomisation, and replay the logs.  Programs that are not installed are left out.",
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the logs in FOLDER")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="run only programs whose name contains NAME"
    )
    return parser


def _trial(arguments: list[str]) -> int:
    options = _trial_parser().parse_args(arguments)
    from kernel.linux.replay.trial import PROGRAMS, Trial, TrialError

    chosen = [p for p in PROGRAMS if not options.names or any(n in p.name for n in options.names)]
    if not chosen:
        names = "; ".join(program.name for program in PROGRAMS)
        print(
            f"trial: no program matches {options.names[0]!r}; choose from {names}", file=sys.stderr
        )
        return 2
    with tempfile.TemporaryDirectory(prefix="trial-") as folder:
        place = options.keep or Path(folder)
        try:
            place.mkdir(parents=True, exist_ok=True)
            return Trial(place, lambda line: print(line, flush=True)).run(chosen)
        except TrialError as error:
            print(f"trial: {error}", file=sys.stderr)
            return error.code
        except OSError as error:
            print(f"trial: {place}: {error.strerror or error}", file=sys.stderr)
            return 2


def main(arguments: list[str]) -> int:
    """Run the command line and return the exit code."""
    if arguments[:1] == ["record"]:
        return _record(arguments[1:])
    if arguments[:1] == ["trial"]:
        return _trial(arguments[1:])
    return _replay(arguments)


if __name__ == "__main__":
    sys.exit(run("kernel.linux.replay", lambda: main(sys.argv[1:])))
