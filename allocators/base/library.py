"""Real allocator libraries: find one, check its settings, and label it for results.

    name               soname                      settings go to     Debian's package
    native/glibc       libc.so.6                   GLIBC_TUNABLES     libc6
    native/jemalloc    libjemalloc.so.2            MALLOC_CONF        libjemalloc2
    native/mimalloc    libmimalloc.so.2            MIMALLOC_…         libmimalloc2.0
    native/tcmalloc    libtcmalloc_minimal.so.4    TCMALLOC_…         libtcmalloc-minimal4
    native/lib         allocator.path              any variable       –

Everything is checked before a run starts its processes; nothing here needs a compiler.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernel.linux.host.elf import ElfFile

#: Prefix of the names of real libraries.
PREFIX = "native/"

#: Values of the setting ``threads``: one thread replays all events in the trace's order, or each
#: thread of the trace becomes a real thread; AUTO is REAL for a trace with several.
AUTO, ONE, REAL = "auto", "one", "real"

#: Environment variables that configure these libraries.  A run sees only those that it sets itself.
_VARIABLES = re.compile(r"LD_PRELOAD|GLIBC_TUNABLES|MALLOC_.*|MIMALLOC_.*|TCMALLOC_.*")
_OPTIONAL_PREFIX = re.compile(r"^(glibc\.malloc\.|MIMALLOC_|TCMALLOC_)")
_LOADER = Path("/lib64/ld-linux-x86-64.so.2")
_FOLDERS = ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64")
_FOLDERS += ("/usr/local/lib", "/usr/lib")


class LibraryError(ValueError):
    """Error for a real library that cannot be found, configured or used; a one-line reason."""


@dataclass(frozen=True)
class _Known:
    """Library that is known by name; ``settings`` is the YAML key of its group of settings.

    ``unknown``: returns the settings that a library of this kind does not have, and those that it
    has ([]: it does not tell), from the environment, its file and what it prints when it starts
    with the additional variables ``verbose``.
    """

    sonames: tuple[str, ...]
    package: str
    settings: str
    variables: Callable[[Mapping[str, Any]], dict[str, str]]
    verbose: Mapping[str, str] = field(default_factory=dict)
    unknown: Callable[[Mapping[str, str], Path, str], tuple[list[str], list[str]]] = lambda *_: (
        [],
        [],
    )


@dataclass(frozen=True)
class Library:
    """Library that was found and starts.

    ``label``: the name and the settings that differ from the defaults.  ``path``: the file, with
    links resolved.  ``threads``: AUTO, ONE or REAL.  ``environment``: the variables that a process
    needs to run on the library.
    """

    name: str
    label: str
    path: Path
    threads: str
    environment: Mapping[str, str] = field(hash=False)

    def is_file(self, path: str) -> bool:
        """Return True if ``path`` is this library."""
        return os.path.realpath(path) == str(self.path)

    def clean_environment(self) -> dict[str, str]:
        """Return this process's environment with this library's variables only, no other's."""
        kept = {n: value for n, value in os.environ.items() if not _VARIABLES.fullmatch(n)}
        return kept | dict(self.environment)

    def identity(self) -> dict[str, Any]:
        """Return what identifies this build of the library, without its path."""
        data = self.path.read_bytes()
        found = {"file": self.path.name, "sha256": hashlib.sha256(data).hexdigest()}
        found["build_id"] = ElfFile(data).build_id()
        found["environment"] = {
            n: value for n, value in self.environment.items() if n != "LD_PRELOAD"
        }
        if self.name == f"{PREFIX}glibc":
            found["version"] = " ".join(platform.libc_ver())
        return found


def is_native(name: object) -> bool:
    """Return True if an allocator's name is that of a real library."""
    return isinstance(name, str) and name.startswith(PREFIX)


def find(name: str, settings: Mapping[str, Any]) -> Library:
    """Return the library ``name`` with the settings of its YAML.  Raises LibraryError."""
    known = _KNOWN.get(name.removeprefix(PREFIX))
    if known is None:
        choices = ", ".join(PREFIX + each for each in _KNOWN)
        raise LibraryError(f"no allocator {name!r}; choose one of {choices}")
    _check_machine(name)
    given = dict(settings)
    threads = given.pop("threads", AUTO)
    if threads not in (choices := (AUTO, ONE, REAL)):
        known_values = ", ".join(choices)
        raise LibraryError(f"allocator {name}: threads={threads}: choose one of {known_values}")
    path = given.pop("path", "")
    values = given.pop(known.settings, None) or {}
    for unknown in given:
        names = ", ".join(("path", known.settings, "threads"))
        raise LibraryError(f"allocator {name}: unknown setting {unknown!r} (it has: {names})")
    if not isinstance(values, Mapping):
        raise LibraryError(
            f"allocator {name}: {known.settings}={values}: expected names and values, "
            f"{known.settings}={{NAME: VALUE}}"
        )
    try:
        variables = known.variables(values)
    except ValueError as error:
        raise LibraryError(f"allocator {name}: {known.settings}: {error}") from None
    file = _file_at(name, path) if path else _installed(name, known)
    preload = {} if name == f"{PREFIX}glibc" else {"LD_PRELOAD": str(file)}
    changed = [file.name] if not known.sonames else []
    changed += [f"{_OPTIONAL_PREFIX.sub('', key)}={value}" for key, value in values.items()]
    changed += [f"threads={threads}"] if threads != AUTO else []
    label = f"{name}({', '.join(changed)})" if changed else name
    library = Library(name, label, file, threads, variables | preload)
    _try(library, known)
    return library


def _check_machine(name: str) -> None:
    """Raise LibraryError where real libraries cannot be measured."""
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine not in ("x86_64", "AMD64"):
        raise LibraryError(
            f"allocator {name}: real libraries run on Linux on x86-64 only; "
            f"this is {system} on {machine}"
        )


def _file_at(name: str, path: object) -> Path:
    """Return the file that the user named.  Raises LibraryError if it cannot be preloaded."""
    if not isinstance(path, str):
        raise LibraryError(f"allocator {name}: path={path}: expected the path of a library")
    if name == f"{PREFIX}glibc":
        raise LibraryError(
            f"allocator {name}: path={path}: the C library cannot be preloaded; leave path out"
        )
    file = Path(os.path.realpath(path))
    if not file.is_file():
        raise LibraryError(f"allocator {name}: path={path}: there is no such file; check the path")
    if re.search(r"[:\s]", str(file)):
        raise LibraryError(
            f"allocator {name}: path={path}: LD_PRELOAD takes no path with spaces or colons"
        )
    try:
        symbols = ElfFile(file.read_bytes()).symbols(".dynsym")
    except (ValueError, KeyError):
        raise LibraryError(f"allocator {name}: path={path}: not a shared library") from None
    missing = [each for each in ("malloc", "free") if each not in symbols]
    if missing:
        raise LibraryError(f"allocator {name}: path={path}: it does not define {missing[0]}")
    return file


def _installed(name: str, known: _Known) -> Path:
    """Return the library that the dynamic loader would find.  Raises LibraryError."""
    if not known.sonames:
        raise LibraryError(f"allocator {name}: path is missing; set allocator.path=LIBRARY.so")
    for soname in known.sonames:
        for place in _places(soname):
            if place.is_file():
                return Path(os.path.realpath(place))
    raise LibraryError(
        f"allocator {name}: {known.sonames[0]} is not installed; install it (Debian: apt install "
        f"{known.package}) or set allocator.path=FILE"
    )


def _places(soname: str) -> Iterator[Path]:
    """Yield the paths where the loader looks for ``soname``.

    In order: LD_LIBRARY_PATH, the loader's cache, the usual folders.
    """
    for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":"):
        if folder:
            yield Path(folder, soname)
    command = shutil.which("ldconfig") or "/sbin/ldconfig"
    try:
        cache = subprocess.run([command, "-p"], capture_output=True, text=True, check=False).stdout
    except OSError:
        cache = ""
    for line in cache.splitlines():
        entry, _, path = line.strip().partition(" => ")
        if path and entry.startswith(f"{soname} ") and "x86-64" in entry:
            yield Path(path)
    for folder in _FOLDERS:
        yield Path(folder, soname)


#: What loaders and libraries print about a setting that they do not accept.
_OBJECTION = re.compile(r"ERROR: ld\.so|[Ii]nvalid conf|Out-of-range conf|has an invalid value")


def _try(library: Library, known: _Known) -> None:
    """Start ``true`` on the library.  Raises LibraryError if the loader or the library objects."""
    command = shutil.which("true")
    if command is None:
        return
    done = subprocess.run(
        [command],
        env={**library.environment, **known.verbose},
        capture_output=True,
        text=True,
        check=False,
    )
    for line in done.stderr.splitlines():
        if _OBJECTION.search(line):
            raise LibraryError(f"allocator {library.label}: {line.strip()}")
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise LibraryError(f"allocator {library.label}: a program cannot start with it: {last[0]}")
    unknown, has = known.unknown(library.environment, library.path, done.stderr)
    if unknown:
        raise LibraryError(
            f"allocator {library.label}: {library.path.name} has no {unknown[0]}; "
            f"it has: {', '.join(has)}"
        )


# --- Settings ------------------------------------------------------------------------------------


#: A line of the loader's list: name, and smallest and largest value unless it is a text.
_TUNABLE = re.compile(r"^([\w.]+):(?: \S+ \(min: (\S+), max: ([^)\s]+)\))?", re.MULTILINE)
_UNLIMITED = (1 << 64) - 1
#: Largest values that malloc itself accepts, where it accepts fewer than the loader lists (the
#: manual of glibc's tunables, mallopt(3)).
_MALLOC_LIMITS = {
    "glibc.malloc.tcache_max": 1032,  # before glibc 2.42
    "glibc.malloc.tcache_count": 65535,
    "glibc.malloc.mmap_threshold": 32 << 20,
    "glibc.malloc.mxfast": 160,
}


def _pairs(values: Mapping[str, Any], shape: str) -> dict[str, str]:
    """Return names and values as strings.  Raises ValueError for a name not of ``shape``."""
    words = {}
    for name, value in values.items():
        if not isinstance(name, str) or not re.fullmatch(shape, name):
            raise ValueError(f"{name!r} is not a valid setting name")
        word = str(value).lower() if isinstance(value, bool) else str(value)
        if value is None or not re.fullmatch(r"[\w.+|:-]+", word):
            raise ValueError(f"{name}={value}: expected a number or a word")
        words[name] = word
    return words


def _tunables(values: Mapping[str, Any]) -> dict[str, str]:
    """Return GLIBC_TUNABLES; a name may leave out ``glibc.malloc.``.

    Raises ValueError for a name that this machine's loader does not list, or a value outside the
    range that it lists: the C library would ignore it without a word.
    """
    pairs = {
        name if name.startswith("glibc.") else f"glibc.malloc.{name}": word
        for name, word in _pairs(values, r"[a-z0-9_.]+").items()
    }
    known = _known_tunables() if pairs else {}
    for name, word in pairs.items():
        if known and name not in known:
            choices = ", ".join(n.removeprefix("glibc.malloc.") for n in known if ".malloc." in n)
            raise ValueError(f"this glibc has no {name}; malloc's tunables are: {choices}")
        _check_range(name, word, known.get(name))
    if not pairs:
        return {}
    return {"GLIBC_TUNABLES": ":".join(f"{name}={word}" for name, word in pairs.items())}


def _check_range(name: str, word: str, span: tuple[int, int] | None) -> None:
    """Raise ValueError unless ``word`` is a number within ``span``, if there is one."""
    if span is None:
        return
    low, high = span
    if name in _MALLOC_LIMITS and not (name.endswith("tcache_max") and _has_large_tcaches()):
        high = min(high, _MALLOC_LIMITS[name])
    try:
        value = int(word, 0)
    except ValueError:
        raise ValueError(f"{name}={word}: expected a number, {low} to {high}") from None
    if value < 0 and high == _UNLIMITED:
        value += 1 << 64  # as the C library reads it
    if not low <= value <= high:
        raise ValueError(f"{name}={word}: this glibc takes {low} to {high}")


def _has_large_tcaches() -> bool:
    """Return True if this glibc's tcaches take chunks of any size (2.42)."""
    version = re.match(r"(\d+)\.(\d+)", platform.libc_ver()[1])
    return bool(version) and (int(version[1]), int(version[2])) >= (2, 42)


def _known_tunables() -> dict[str, tuple[int, int] | None]:
    """Return the tunables that this machine's loader lists, with the range of those that have one.

    {} before glibc 2.33, which cannot list them.
    """
    try:
        command = [str(_LOADER), "--list-tunables"]
        listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return {}
    found = {}
    for name, low, high in _TUNABLE.findall(listed):
        found[name] = (int(low, 0), int(high, 0)) if low else None
    return found


def _conf(values: Mapping[str, Any]) -> dict[str, str]:
    """Return MALLOC_CONF; abort_conf makes jemalloc reject names that it does not know."""
    pairs = _pairs(values, r"[a-z0-9_.]+")
    if not pairs:
        return {}
    text = ",".join(f"{name}:{word}" for name, word in pairs.items())
    return {"MALLOC_CONF": f"abort_conf:true,{text}"}


def _options(prefix: str) -> Callable[[Mapping[str, Any]], dict[str, str]]:
    """Return a function that turns names into variables with ``prefix``, which may be left out."""

    def variables(values: Mapping[str, Any]) -> dict[str, str]:
        words = _pairs(values, r"[A-Za-z0-9_]+")
        return {prefix + n.upper().removeprefix(prefix): word for n, word in words.items()}

    return variables


def _not_listed(
    environment: Mapping[str, str], _path: Path, said: str
) -> tuple[list[str], list[str]]:
    """Compare with the options that mimalloc lists when it is verbose; it says which are older."""
    has = re.findall(r"option '(\w+)'", said)
    names = [n.removeprefix("MIMALLOC_").lower() for n in environment if n.startswith("MIMALLOC_")]
    older = re.findall(r"option \W?mimalloc_(\w+)\W? is deprecated", said)
    return [n for n in names if has and n not in has and n not in older], has


def _not_in_file(
    environment: Mapping[str, str], path: Path, _said: str
) -> tuple[list[str], list[str]]:
    """Compare with the names of variables in tcmalloc's file, which it looks up one by one."""
    has = [name.decode() for name in re.findall(rb"\b(TCMALLOC_[A-Z_]+)\0", path.read_bytes())]
    names = [n for n in environment if n.startswith("TCMALLOC_")]
    return [n for n in names if has and n not in has], has


def _environment(values: Mapping[str, Any]) -> dict[str, str]:
    """Return any variables except the loader's own."""
    words = _pairs(values, r"[A-Za-z_][A-Za-z0-9_]*")
    for name in words:
        if name.startswith("LD_"):
            raise ValueError(f"{name} belongs to the dynamic loader and cannot be set here")
    return words


_KNOWN = {
    "glibc": _Known(("libc.so.6",), "libc6", "tunables", _tunables),
    "jemalloc": _Known(("libjemalloc.so.2",), "libjemalloc2", "conf", _conf),
    "mimalloc": _Known(
        ("libmimalloc.so.2", "libmimalloc.so.2.0"),
        "libmimalloc2.0",
        "options",
        _options("MIMALLOC_"),
        {"MIMALLOC_VERBOSE": "1"},
        _not_listed,
    ),
    "tcmalloc": _Known(
        ("libtcmalloc_minimal.so.4",),
        "libtcmalloc-minimal4",
        "options",
        _options("TCMALLOC_"),
        unknown=_not_in_file,
    ),
    "lib": _Known((), "", "environment", _environment),
}
