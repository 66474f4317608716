"""Result files: written completely or not at all, and never in place of anything but a file.

A command calls :func:`unwritable` before long work, and :func:`replacing` or :func:`save` after it.
"""

import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Bytes that the trial file of :func:`unwritable` holds: a full file system refuses them.
_TRIAL_BYTES = 4096


def _refusal(path: Path) -> str:
    """Return why no file may be written at ``path``, '' if nothing forbids it."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        parent = _target(path).parent if path.is_symlink() else path.parent
        return "" if parent.is_dir() else f"the directory {parent} does not exist"
    except OSError as error:
        return error.strerror or str(error)
    if stat.S_ISDIR(mode):
        return "is a directory"
    return "" if stat.S_ISREG(mode) else "not a regular file, so it cannot be replaced"


def _target(path: Path) -> Path:
    """Return the file to replace: the one that ``path`` names, not a symbolic link to it."""
    return Path(os.path.realpath(path))


def _create(target: Path) -> Path:
    """Create a new file of an unpredictable name beside ``target``.  Raises OSError."""
    name = f".{target.stem[:40]}.{secrets.token_hex(6)}{target.suffix}"
    temporary = target.with_name(name)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    return temporary


def unwritable(path: Path) -> str:
    """Return why :func:`replacing` would fail for ``path``; '' if it would not.

    Writes a small file beside it and removes that again: only an attempt shows that a file system
    is full or read-only.
    """
    if reason := _refusal(path):
        return reason
    try:
        trial = _create(_target(path))
        try:
            with trial.open("wb") as file:
                file.write(bytes(_TRIAL_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return ""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield an empty file beside ``path``; it replaces ``path`` if the block raises nothing.

    The data are on disk before the name changes, so that a crash leaves the old file or the new
    one.  A symbolic link stays, and the file that it names is replaced; the permissions of a
    replaced file are kept.  Raises OSError, which names ``path``, also if ``path`` is a device, a
    FIFO, a socket or a directory.
    """
    if reason := _refusal(path):
        raise OSError(errno.EINVAL, reason, str(path))
    target, temporary = _target(path), None
    try:
        temporary = _create(target)
        yield temporary
        with suppress(FileNotFoundError):
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        _sync(temporary, os.O_RDONLY)
        temporary.replace(target)
        with suppress(OSError):  # not every file system can
            _sync(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.filename in (None, str(temporary), temporary):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    """Wait until a file or directory is on disk."""
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace the file ``path`` by ``text``, in UTF-8.  Raises OSError as :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save(path: Path | None, text: str, name: str) -> tuple[Path | None, str]:
    """Write ``text``, the result of long work, so that it is not lost.

    Write it to ``path``; if there is none or it cannot be written, to a new file in the folder of
    temporary files, whose unpredictable name begins with ``name``.  Returns the file that was
    written, None if neither could be; and why it is not ``path``, '' if it is or if there is none.
    """
    reason = ""
    if path is not None:
        try:
            write_text(path, text)
        except OSError as error:
            reason = f"{path}: {error.strerror or error}"
        else:
            return path, ""
    try:
        # mkstemp creates with O_EXCL, for the owner only, and follows no link.
        descriptor, made = tempfile.mkstemp(prefix=f"{name}-", suffix=".json")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        return None, reason or f"{tempfile.gettempdir()}: {error.strerror or error}"
    return Path(made), reason
