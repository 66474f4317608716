"""Record and replay real programs (``python -m kernel.linux.replay trial``).

Each program runs with and without address randomisation (``setarch -R``), under the recorder and,
if it is installed, under strace.  Programs that are not installed are left out.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kernel import PROJECT
from kernel.linux.replay import report
from kernel.linux.replay.log import LogError
from kernel.linux.replay.recorder import IMPOSSIBLE
from kernel.linux.replay.run import LogResult, replay

STRACE = ["strace", "-f", "-y", "-e", "trace=%memory,%process,%ipc,io_setup,io_destroy,prlimit64"]
#: Timeout of one program in seconds.
_TIMEOUT = 300
#: Largest share of calls, in percent, that may be not comparable.
_MAX_NOT_COMPARABLE = 1.0

_HELLO = """
#include <stdio.h>
int main(void) { return printf("hello\\n") < 0; }
"""
#: Twelve concurrent threads, then thirty one after the other; glibc gives threads separate arenas.
_THREADS = """
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static void *work(void *argument)
{
    unsigned state = (unsigned long)argument * 7919 + 1;
    char *blocks[64] = {0};
    for (int i = 0; i < 3000; i++) {
        state = state * 1103515245 + 12345;
        int k = state >> 8 & 63;
        size_t size = (state >> 16) % 300000 + 1;
        free(blocks[k]);
        blocks[k] = malloc(size);
        memset(blocks[k], 1, size < 4096 ? size : 4096);
        if (i % 50 == 0)
            blocks[k] = realloc(blocks[k], 3 * size);
    }
    for (int k = 0; k < 64; k++)
        free(blocks[k]);
    return 0;
}

int main(void)
{
    pthread_t threads[12], thread;
    for (long i = 0; i < 12; i++)
        pthread_create(&threads[i], 0, work, (void *)i);
    for (int i = 0; i < 12; i++)
        pthread_join(threads[i], 0);
    for (long i = 0; i < 30; i++) {
        pthread_create(&thread, 0, work, (void *)i);
        pthread_join(thread, 0);
    }
    return 0;
}
"""
_NUMPY = """
import numpy
a = numpy.random.rand(1500, 1500)
print((a @ a).sum(), numpy.linalg.svd(a[:200, :200])[1][0])
"""
_THREADED_PYTHON = """
import os, subprocess, threading, zlib
def work():
    data = os.urandom(1 << 20)
    for n in range(20):
        zlib.compress(data[: n * 50000])
        bytearray(200000 + n * 100000)
threads = [threading.Thread(target=work) for _ in range(10)]
for t in threads: t.start()
for t in threads: t.join()
subprocess.run(["ls", "/"])
"""
_FORKING_PYTHON = """
import os, threading
def fork():
    for _ in range(5):
        child = os.fork()
        if child == 0:
            bytearray(1 << 20)
            os._exit(0)
        os.waitpid(child, 0)
def churn():
    for n in range(200):
        bytearray((1 << 20) + 5000 * n)
threads = [threading.Thread(target=f) for f in (fork, churn, churn)]
for t in threads: t.start()
for t in threads: t.join()
"""
_EXECING_PYTHON = """
import os, threading, time
def churn():
    while True:
        bytearray(1 << 20)
for _ in range(3):
    threading.Thread(target=churn, daemon=True).start()
time.sleep(0.1)
os.execvp("ls", ["ls", "/"])
"""
_PERL = """
my %h; $h{$_} = "x" x ($_ % 5000) for 1 .. 30000;
my $s = "a" x (20 << 20); print length($s), scalar(keys %h), `echo hi`;
"""
_SQL = """
create table t(a, b);
with recursive c(x) as (select 1 union all select x + 1 from c where x < 200000)
insert into t select x, hex(randomblob(20)) from c;
create index i on t(b);
select count(*), max(b) from t;
"""
_NODE = """
const a = []; for (let i = 0; i < 300000; i++) a.push({i, s: "x" + i});
const { Worker } = require("worker_threads");
new Worker("let b = []; for (let i = 0; i < 1e5; i++) b.push([i])", { eval: true });
"""
_PIPELINE = "seq 1 200000 | sort -r | awk '{s+=$1} END {print s}' | gzip -c | zcat | wc"


_EXHAUSTING_PYTHON = """
blocks = []
try:
    while True:
        blocks.append(bytearray(1 << 20))
except MemoryError:
    pass
"""
_SOURCES = {"hello.c": _HELLO, "threads.c": _THREADS}


@dataclass(frozen=True)
class TrialProgram:
    """Program of the trial.  ``{folder}`` in its commands is replaced by a temporary folder."""

    name: str
    command: list[str]
    needs: tuple[str, ...] = ()  # other commands that must be installed
    setup: tuple[list[str], ...] = ()  # commands to run first, not recorded

    def missing(self) -> str:
        """Return a command that the program needs and that is not installed, or ""."""
        words = [self.command[0], *self.needs]
        installed = (word for word in words if not word.startswith("{folder}"))
        return next((word for word in installed if shutil.which(word) is None), "")


def _python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def _limited(limit: str, command: list[str]) -> list[str]:
    """Return the command with a limit set by the shell's ulimit."""
    return ["bash", "-c", f'ulimit {limit}; exec "$@"', "-", *command]


def _compiled(source: str, *options: str) -> list[str]:
    return ["gcc", "-g", *options, f"{{folder}}/{source}", "-o", "{folder}/program"]


_REPOSITORY = ["git", "-C", "{folder}/kernel", "-c", "user.name=trial", "-c", "user.email=trial"]
_COMPILED = ["{folder}/program"]

PROGRAMS = [
    TrialProgram("python3 with numpy", _python(_NUMPY)),
    TrialProgram("python3, threads", _python(_THREADED_PYTHON)),
    TrialProgram("python3, forks among threads", _python(_FORKING_PYTHON)),
    TrialProgram("python3, exec among threads", _python(_EXECING_PYTHON)),
    TrialProgram("python3, ulimit -v", _limited("-v 400000", _python(_EXHAUSTING_PYTHON))),
    TrialProgram("python3, ulimit -s unlimited", _limited("-s unlimited", _python(_NUMPY))),
    TrialProgram("gcc", ["gcc", "-O2", "{folder}/threads.c", "-o", "{folder}/compiled"]),
    TrialProgram("C, 42 threads", _COMPILED, ("gcc",), (_compiled("threads.c", "-pthread"),)),
    TrialProgram("C, linked statically", _COMPILED, ("gcc",), (_compiled("hello.c", "-static"),)),
    TrialProgram("perl", ["perl", "-e", _PERL]),
    TrialProgram("sqlite3", ["sqlite3", ":memory:", _SQL]),
    TrialProgram(
        "git",
        [*_REPOSITORY, "gc", "--aggressive", "--quiet"],
        setup=(
            ["cp", "-r", str(PROJECT / "kernel"), "{folder}/kernel"],
            [*_REPOSITORY, "init", "-q"],
            [*_REPOSITORY, "add", "."],
            [*_REPOSITORY, "commit", "-q", "-m", "kernel"],
        ),
    ),
    TrialProgram("jq", ["jq", "-n", "[range(200000)] | map(. * 2) | add"]),
    TrialProgram("shell pipeline", ["sh", "-c", _PIPELINE], ("awk", "sort", "gzip", "zcat")),
    TrialProgram("node", ["node", "-e", _NODE]),
    TrialProgram(
        "xz, 4 threads",
        ["xz", "-T4", "-k", "-c", "-1", "{folder}/data"],
        setup=(["sh", "-c", "seq 1 4000000 > {folder}/data"],),
    ),
    TrialProgram(
        "tar with xz", ["tar", "cJf", "{folder}/k.tar.xz", str(PROJECT / "kernel")], ("xz",)
    ),
    TrialProgram(
        "gdb",
        ["gdb", "--batch", "-ex", "info functions main", *_COMPILED],
        ("gcc",),
        (_compiled("hello.c"),),
    ),
    TrialProgram(
        "find", ["find", str(PROJECT / "kernel"), "-name", "*.py", "-newer", "/etc/passwd"]
    ),
    TrialProgram("openssl", ["openssl", "genrsa", "-out", "{folder}/key", "3072"]),
    TrialProgram("java", ["java", "-version"]),
]


@dataclass
class Row:
    """Row of the table: one run of one program, with counts of calls and of maps compared."""

    program: str
    addresses: str  # random or fixed
    by: str  # record or strace
    result: LogResult
    log: str  # its path

    def cells(self) -> list[str]:
        """Return the columns as text."""
        total = self.result.total
        counts = [
            total(lambda s: s.calls),
            total(lambda s: s.compared),
            total(lambda s: s.differ),
            total(lambda s: s.anchors),
            total(lambda s: s.not_comparable),
            total(lambda s: int(s.comparison is not None)),
            total(lambda s: int(s.snapshot_differs)),
        ]
        return [self.program, self.addresses, self.by, *map(str, counts)]


HEAD = [
    *("program", "addresses", "by", "calls", "compared", "differ", "given", "not comparable"),
    *("maps", "differ"),
]
_WIDTHS = [30, 9, 6, 6, 8, 6, 5, 14, 4, 6]


def line_of(cells: list[str]) -> str:
    """Format one line of the table."""
    return "  ".join(
        cell.ljust(width) if n < 3 else cell.rjust(width)
        for n, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    ).rstrip()


class TrialError(Exception):
    """A program could not be prepared or recorded, or its log could not be replayed."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def _run(command: list[str]) -> int:
    """Run a command without input and output; return its exit code.

    Raises TrialError if it cannot be started or exceeds the timeout.
    """
    quiet = subprocess.DEVNULL
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "GIT_CONFIG_GLOBAL": os.devnull}
    try:
        return subprocess.run(
            command,
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            env=environment,
            timeout=_TIMEOUT,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        raise TrialError(f"timeout after {_TIMEOUT} s") from None
    except OSError as error:
        raise TrialError(f"{command[0]}: {error.strerror or error}") from None


@dataclass
class Trial:
    """Runner of the programs, one after the other."""

    folder: Path  # the logs are written there
    print_line: Callable[[str], None]
    rows: list[Row] = field(default_factory=list)
    failures: int = 0

    def run(self, programs: list[TrialProgram]) -> int:
        """Run the programs, print the table and return the exit code.

        Raises TrialError if nothing can be recorded on this machine.
        """
        self.print_line(line_of(HEAD))
        for number, program in enumerate(programs):
            missing = program.missing()
            if missing:
                self.print_line(f"{program.name}: left out, {missing} is not installed")
                continue
            with tempfile.TemporaryDirectory(prefix="trial-") as work:
                try:
                    self._prepare(program, Path(work))
                except TrialError as error:
                    self.print_line(f"{program.name}: left out, {error}")
                    continue
                for addresses, by in self._modes():
                    path = self.folder / f"{number:02}-{addresses}.{by}.gz"
                    try:
                        self._run_program(program, Path(work), addresses, by, path)
                    except TrialError as error:
                        if error.code == IMPOSSIBLE:
                            raise
                        self.failures += 1
                        self.print_line(f"{program.name}, {addresses} addresses, {by}: {error}")
        self.print_line(self.summary())
        too_many = self._percent() > _MAX_NOT_COMPARABLE
        return int(bool(self.failures) or too_many or any(row.result.differ for row in self.rows))

    def _modes(self) -> Iterator[tuple[str, str]]:
        for addresses in ("random", "fixed"):
            yield addresses, "record"
            if shutil.which("strace") and (addresses == "random" or shutil.which("setarch")):
                yield addresses, "strace"

    def _prepare(self, program: TrialProgram, work: Path) -> None:
        for name, text in _SOURCES.items():
            (work / name).write_text(text)
        for command in program.setup:
            if _run([word.replace("{folder}", str(work)) for word in command]) != 0:
                raise TrialError(f"its setup command {command[0]} failed")

    def _run_program(
        self, program: TrialProgram, work: Path, addresses: str, by: str, path: Path
    ) -> None:
        command = [word.replace("{folder}", str(work)) for word in program.command]
        fixed = addresses == "fixed"
        if by == "record":
            prefix = [sys.executable, "-m", "kernel.linux.replay", "record", "-o", str(path)]
            code = _run([*prefix, *(["--no-aslr"] if fixed else []), "--", *command])
            if code == IMPOSSIBLE and not path.exists():
                hint = "python -m kernel.linux.replay record -- true"
                raise TrialError(
                    f"recording is impossible here; '{hint}' prints the reason", IMPOSSIBLE
                )
        else:
            path = path.with_suffix("")
            prefix = ["setarch", "-R", *STRACE] if fixed else STRACE
            _run([*prefix, "-o", str(path), *command])
        try:
            row = Row(program.name, addresses, by, replay(path), str(path))
        except LogError as error:
            raise TrialError(str(error)) from None
        self.rows.append(row)
        self.print_line(line_of(row.cells()))
        for line in report.explain_first(row.result):
            self.print_line(f"    {line}")

    def _percent(self) -> float:
        return report.percent(self._total(4), self._total(0))

    def _total(self, column: int) -> int:
        return sum(int(row.cells()[3 + column]) for row in self.rows)

    def summary(self) -> str:
        """Return the last line of the table."""
        calls, compared, differ, given, left, maps, maps_differ = map(self._total, range(7))
        programs = len({row.program for row in self.rows})
        return (
            f"{len(self.rows)} runs of {programs} program{'s' * (programs != 1)}: {calls} calls: "
            f"{compared} compared, "
            f"{differ} differ, {left} not comparable ({self._percent():.1f} %), {given} taken as "
            f"given; {maps} maps compared, {maps_differ} differ"
        )
