"""Unpacking of trace files: plain, gzip, zstd or one member of a zip archive.

    FILE ──► chunks of bytes ──► whole lines

Errors of the operating system and of the decompressors become a TraceError that names the file.
"""

import gzip
import lzma
import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from benchmarks.events.parquet import TraceError
from kernel.engine.foreign import WIDTH, printable, quoted

#: First bytes of a packed file.
_MAGIC = {b"\x1f\x8b": "gzip", b"PK": "zip", b"\x28\xb5\x2f\xfd": "zstd"}
#: Bytes per read, and of the longest line.  A piece of empty lines takes 120 times its size.
_PIECE, _LONGEST_LINE = 1 << 20, 1 << 22
#: Characters of a decompressor's message that are shown.
_MESSAGE = 2 * WIDTH
#: Errors that decompressors raise for damaged input, in addition to OSError.
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, struct.error, ValueError)


@dataclass
class Source:
    """A trace file: its path, packing and format (None: Parquet), and counts of its import."""

    path: Path
    packing: str
    member: str = ""
    format: ModuleType | None = None
    #: Lines (or messages, or records) read, and dropped records by name; filled by the import.
    lines: int = 0
    dropped: Counter = field(default_factory=Counter)
    first_problem: tuple[int, str] | None = None


def source_of(path: Path, magic: bytes) -> Source:
    """Return the Source at ``path``, whose first bytes are ``magic``; its format is not set."""
    for begin, packing in _MAGIC.items():
        if magic.startswith(begin):
            return Source(path, packing, _member(path) if packing == "zip" else "")
    return Source(path, "plain")


def _member(path: Path) -> str:
    """Return the name of the only file, or the only .txt file, in a zip archive."""
    with zipfile.ZipFile(path) as archive:
        files = [info.filename for info in archive.infolist() if not info.is_dir()]
    texts = [name for name in files if name.endswith(".txt")]
    for choice in (files, texts):
        if len(choice) == 1:
            return choice[0]
    if not files:
        raise TraceError(f"{path}: the archive is empty")
    shown = ", ".join(quoted(name)[1:-1] for name in files[:3]) + (", …" if len(files) > 3 else "")
    raise TraceError(
        f"{path}: the archive contains {len(files)} files ({shown}); expected one, or one .txt"
    )


@contextmanager
def trace_errors(path: Path) -> Iterator[None]:
    """Convert errors of the operating system and of the decompressors into TraceError."""
    try:
        yield
    except TraceError:
        raise
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            what = printable(str(error), _MESSAGE)
            raise TraceError(f"{path}: truncated or damaged gzip file ({what})") from None
        if error.errno is None:  # from pyarrow, for a zstd file
            what = printable(str(error), _MESSAGE)
            raise TraceError(f"{path}: truncated or damaged archive ({what})") from None
        raise TraceError(f"{path}: {error.strerror or error}") from None
    except _DAMAGE as error:
        what = printable(str(error), _MESSAGE)
        raise TraceError(f"{path}: truncated or damaged archive ({what})") from None
    except RuntimeError as error:  # a password, or an unsupported compression method
        raise TraceError(f"{path}: {printable(str(error), _MESSAGE)}") from None


@contextmanager
def open_source(source: Source) -> Iterator[tuple[BinaryIO, Callable[[], float]]]:
    """Yield the unpacked stream, and a function that returns the fraction read."""
    with source.path.open("rb") as file:
        total = max(os.fstat(file.fileno()).st_size, 1)

        def fraction() -> float:
            return file.tell() / total

        if source.packing == "gzip":
            with gzip.GzipFile(fileobj=file) as stream:
                yield stream, fraction
        elif source.packing == "zip":
            with zipfile.ZipFile(file) as archive, archive.open(source.member) as stream:
                yield stream, fraction
        elif source.packing == "zstd":
            import pyarrow as pa

            with pa.CompressedInputStream(file, "zstd") as stream:
                yield stream, fraction
        else:
            yield file, fraction


def chunks(source: Source) -> Iterator[tuple[bytes, float]]:
    """Yield the unpacked bytes, some megabytes at a time, and the fraction read."""
    with trace_errors(source.path), open_source(source) as (stream, fraction):
        while data := stream.read(_PIECE):
            yield data, fraction()


def whole_lines(source: Source) -> Iterator[tuple[bytes, float]]:
    """Yield whole lines, some megabytes at a time, and the fraction read."""
    rest = b""
    for data, fraction in chunks(source):
        end = data.rfind(b"\n") + 1
        if end:
            yield rest + data[:end], fraction
            rest = data[end:]
        else:
            rest += data
        if len(rest) > _LONGEST_LINE:
            raise TraceError(
                f"{source.path}: a line exceeds {_LONGEST_LINE} bytes; not a text trace"
            )
    if rest:
        yield rest, 1.0
