"""Build of the recorder library: compiled at first use, cached under the hash of its source."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.events.parquet import TraceError
from benchmarks.trace.formats import cache_directory

SOURCE = Path(__file__).with_name("recorder.c")
FLAGS = ("-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
_COMPILERS = ("cc", "gcc", "clang")
#: Seconds between two clock readings; the length of a tick is then accurate to some parts in 10**6.
_BETWEEN = 0.02


def library() -> Path:
    """Return the path of the compiled recorder.  Raises TraceError if it cannot be built."""
    if sys.platform != "linux":
        raise TraceError("recording needs Linux")
    content = SOURCE.read_bytes() + repr((FLAGS, platform.machine())).encode()
    name = f"{hashlib.sha256(content).hexdigest()[:32]}.so"
    path = cache_directory().parent.absolute() / "recorder" / name
    if any(c in str(path) for c in " :"):
        raise TraceError(
            f"{path.parent}: LD_PRELOAD cannot take a path with spaces or colons; "
            "set XDG_CACHE_HOME to another directory"
        )
    if not path.exists():
        _compile(path)
    return path


def _compile(path: Path) -> None:
    """Compile the recorder to ``path``, which appears complete or not at all."""
    named = os.environ.get("CC")
    compiler = shlex.split(named) if named else [c for c in _COMPILERS if shutil.which(c)][:1]
    if not compiler or not shutil.which(compiler[0]):
        wanted = named or ", ".join(_COMPILERS)
        raise TraceError(
            f"recorder: it is compiled at first use, but no C compiler ({wanted}) was found; "
            "install one, or set CC"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            made = Path(directory) / "recorder.so"
            command = [*compiler, *FLAGS, "-o", str(made), str(SOURCE), "-ldl", "-pthread"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = done.stderr.splitlines() or [f"exit code {done.returncode}"]
                first = next((line for line in said if "error" in line), said[-1])
                raise TraceError(f"{compiler[0]} cannot compile the recorder: {first}")
            made.replace(path)
    except OSError as error:
        raise TraceError(f"{path.parent}: {error.strerror or error}") from None


def nanoseconds_per_tick(path: Path) -> float:
    """Measure the length of a tick of the recorder's clock on this machine."""
    read = ctypes.CDLL(str(path)).recorder_clocks
    begin, end = (ctypes.c_uint64 * 2)(), (ctypes.c_uint64 * 2)()
    read(begin)
    time.sleep(_BETWEEN)
    read(end)
    return (end[1] - begin[1]) / (end[0] - begin[0])
