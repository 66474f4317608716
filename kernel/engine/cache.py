"""Directory of the compiled code, which must be private: its files are executed when loaded.

A directory that cannot be used is replaced by a temporary one, for this process and its children.
"""

import atexit
import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

#: Set to 1 to use a cache directory to which other users can write.
SHARED = "MALLOC_BENCH_SHARED_CACHE"
_VARIABLE = "NUMBA_CACHE_DIR"


def cache_root() -> Path:
    """Return NUMBA_CACHE_DIR, else the user's cache directory, else a temporary directory.

    Prints a warning for a temporary directory, which is removed when the process exits.
    """
    named = os.environ.get(_VARIABLE)
    if not named:
        base = os.environ.get("XDG_CACHE_HOME")
        named = str((Path(base) if base else _home() / ".cache") / "malloc-bench" / "numba")
    return _usable(str(Path(named).absolute()), os.environ.get(SHARED) == "1")


def _home() -> Path:
    """Return the home directory; for a user without one, a path at which nothing can be made."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(os.devnull)


@cache
def warn(text: str) -> None:
    """Print a warning, the same one only once."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


@cache
def _usable(root: str, shared: bool) -> Path:
    """Return ``root``, or a temporary directory if it cannot be used."""
    reason = _obstacle(Path(root), shared)
    if not reason:
        return Path(root)
    temporary = tempfile.mkdtemp(prefix="malloc-bench-cache-")
    atexit.register(_remove, temporary, os.getpid())
    os.environ[_VARIABLE] = temporary
    warn(f"compile cache {root}: {reason}; a temporary cache is used, and removed at the end")
    return Path(temporary)


def _remove(directory: str, owner: int) -> None:
    """Remove a temporary directory in the process that made it."""
    if os.getpid() == owner:
        shutil.rmtree(directory, ignore_errors=True)


def _obstacle(root: Path, shared: bool) -> str:
    """Return the reason why a cache directory cannot be used, or ""."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = root.stat()
        tempfile.TemporaryFile(dir=root).close()
    except OSError as error:
        return f"it cannot be written ({error.strerror})"
    if shared:
        return ""
    hint = f"to use it, set {SHARED}=1"
    if status.st_uid != os.geteuid():
        return f"it belongs to another user, whose code would run; {hint}"
    if status.st_mode & 0o022:
        return f"others may write to it, and their code would run: chmod go-w it; {hint}"
    return ""
