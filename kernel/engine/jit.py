"""Decorator ``@jit`` and :func:`build`, which compiles all machine code of the project.

``@jit`` only marks a function as part of the hot core.  Its module can be imported without Numba,
and the function runs as plain Python.  :func:`build` walks the marked functions that a loop reaches
through its globals, copies each with some global names *bound* to other values (a plugin's
``malloc``, a switch, a setting), and compiles the copies with Numba.

Functions are copied, not passed as arguments: Numba's disk cache never hits for a dispatcher passed
as an argument, a closure factory or a jitclass, and a first-class function costs an indirect call.
A copy with bound globals is inlined, cached, and also runs with the JIT off.

The machine code depends exactly on the code reached and the constants bound, so their hash names
the cache directory.  Numba itself checks only the file of the outermost function and would load
stale code after an edit of a callee.  Only the outermost function is cached on disk; loops of one
process that reach the same code with the same bindings share the copies of the others.  The name of
a copy contains the hash of the code that it reaches, so that symbols never collide.

The walk also finds mistakes that Numba reports late, at another place or never: a name that does
not exist, an unmarked callee, a mutable global (compiled code freezes its value), a plugin's
function whose parameters differ from the contract's.  It reports file and line before Numba is
imported.

``_nrt=False`` keeps atomic reference counts out of the loop (ten times faster); such code cannot
allocate arrays, so all state is made in Python beforehand.
"""

import builtins
import dis
import functools
import hashlib
import inspect
import os
import platform
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from kernel.engine import switches
from kernel.engine.cache import cache_root, warn
from kernel.engine.syntax import mistakes, odd_return, returns_value, unknown_fields

#: Modules whose functions Numba itself supports.  Of the project's modules, a compiled function may
#: name only a header (``HEADER = True``, such as kernel.uapi), to read its constants.
_FOREIGN = {"math", "numpy"}
#: Modules whose functions and types a compiled function may name directly.
_TYPED = _FOREIGN | {"numba"}

_OPTIONS = {"_nrt": False, "error_model": "numpy", "nogil": True}
#: Options of guarded functions: a wrong index or a division by zero raises.
_GUARDED = {"boundscheck": True, "error_model": "python"}
#: Options of functions that only compiled code calls, which need no entry points.
_INNER_OPTIONS = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def jit(
    function: Callable | None = None,
    *,
    inline: bool = False,
    cold: bool = False,
    intrinsic: bool = False,
    when: str = "",
) -> Callable:
    """Mark ``function`` as compilable.

    ``inline=True`` forces its body into every caller; ``cold=True`` (a slow path) keeps it out.
    ``intrinsic=True``: the body defines the result; kernel.engine.link compiles other code for it.
    ``when``: the function is a hook of this switch (kernel.engine.switches).  If the switch is off,
    and without :func:`build`, a call does nothing and returns 0; callers need not test the switch.
    """
    if function is None:
        return lambda f: jit(f, inline=inline, cold=cold, intrinsic=intrinsic, when=when)
    # Always explicit: otherwise Numba gives a function the options of its first caller.
    function.__jit__ = {"forceinline": inline}
    function.__cold__ = cold
    function.__intrinsic__ = intrinsic
    return hook(function, when) if when else function


def hook(body: Callable, when: str) -> Callable:
    """Return a function that does nothing; the walk replaces it by ``body`` if ``when`` is on."""
    if when not in switches.NAMES:
        raise ValueError(f"{when} is not a switch; choose one of {', '.join(switches.NAMES)}")
    empty = functools.update_wrapper(lambda *_args: 0, body)
    empty.__when__ = when
    return empty


@jit(inline=True)
def _nothing(*_args: Any):
    """Replace a hook whose switch is off."""
    return 0


def _resolve_hook(function: Callable, bindings: dict[str, Any]) -> Callable:
    """Return ``function``; for a hook its body, or :func:`_nothing` if its switch is off."""
    when = getattr(function, "__when__", "")
    if not when:
        return function
    return function.__wrapped__ if bindings.get(when, getattr(switches, when)) else _nothing


class WalkError(TypeError):
    """Error for a function that cannot be compiled; the message begins with FILE:LINE."""


def is_jit(value: object) -> bool:
    """Return True for a function that is marked with :func:`jit`."""
    return isinstance(value, types.FunctionType) and hasattr(value, "__jit__")


def disabled() -> bool:
    """Return True if NUMBA_DISABLE_JIT selects plain Python (used to measure coverage)."""
    return os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield a code object and those nested in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _fingerprint(code: types.CodeType) -> str:
    """Return a text that depends on the effect of the code, not on its place or its comments."""
    parts = []
    for c in _codes(code):
        constants = [repr(x) for x in c.co_consts if not isinstance(x, types.CodeType)]
        tables = (c.co_names, c.co_varnames, c.co_argcount, c.co_exceptiontable)
        parts.append(repr((c.co_code.hex(), constants, *tables)))
    return "\n".join(parts)


#: Instructions that make an object, which is impossible without reference counts.
_MAKES = {
    "BUILD_LIST": "a list",
    "BUILD_MAP": "a dict",
    "BUILD_CONST_KEY_MAP": "a dict",
    "BUILD_SET": "a set",
    "FORMAT_VALUE": "a string",
    "FORMAT_SIMPLE": "a string",
    "BUILD_STRING": "a string",
}


#: Built-in functions that can be compiled, in addition to the types of exceptions.
_BUILTINS = {"abs", "bool", "divmod", "enumerate", "float", "int", "len", "max", "min", "pow"}
_BUILTINS |= {"print", "range", "round", "zip"}
#: Largest array that compiled code may contain as a constant, bytes; longest chain of calls.
_MAX_CONSTANT = 1 << 24
_MAX_DEPTH = 100


class _Use(NamedTuple):
    """Use of a global: its name, the attribute that is read of it ("" for none), and the line."""

    name: str
    attribute: str
    line: int


def _uses(function: Callable, *, loose: bool = False) -> Iterator[_Use]:
    """Yield each use of a global in ``function``.

    Raises WalkError, unless ``loose``, if the function assigns a global or makes an object.
    """
    for code in _codes(function.__code__):
        instructions = [i for i in dis.get_instructions(code) if i.opname != "EXTENDED_ARG"]
        for i, after in zip(instructions, [*instructions[1:], None], strict=True):
            line = i.positions.lineno or code.co_firstlineno
            if i.opname == "STORE_GLOBAL" and not loose:
                raise _error(function, line, f"assigns the global {i.argval}: it belongs in STATE")
            if i.opname in _MAKES and not loose:
                raise _error(
                    function, line, f"makes {_MAKES[i.opname]}: compiled code makes no objects"
                )
            if i.opname == "LOAD_GLOBAL":
                reads = after is not None and after.opname in ("LOAD_ATTR", "LOAD_METHOD")
                yield _Use(i.argval, after.argval if reads else "", line)


def global_names(function: Callable) -> list[str]:
    """Return the globals that a function reads, sorted (co_names also has attributes)."""
    return sorted({use.name for use in _uses(function)})


def _error(function: Callable, line: int, what: str) -> WalkError:
    """Return the WalkError for ``line`` of ``function``."""
    return WalkError(f"{function.__code__.co_filename}:{line}: {function.__name__}() {what}")


#: Inner functions compiled in this process, by :meth:`_Walk.key_of`.
_compiled: dict[str, Callable] = {}


class _Walk:
    """Functions that one outermost function reaches, and everything that they depend on."""

    def __init__(
        self,
        function: Callable,
        bindings: dict[str, Any],
        guard: Collection[str] = (),
        *,
        loose: bool = False,
        trusted: bool = False,
    ) -> None:
        self.outermost = function = _resolve_hook(function, bindings)
        self.bindings = bindings
        self.guard = guard
        self.loose = loose
        self.trusted = trusted
        self.globals: dict[Callable, dict[str, Any]] = {}  # in the order of the walk
        self.callees: dict[Callable, list[str]] = {}
        self.lines: dict[Callable, list[str]] = {}
        self.path: list[Callable] = []
        self._visit(function)
        self._environment = _environment()
        self._keys: dict[Callable, str] = {}
        self.key = self.key_of(function)

    def _visit(self, function: Callable) -> None:
        first = function.__code__.co_firstlineno
        if function in self.path:
            raise _error(function, first, "calls itself: compiled functions cannot recurse")
        if len(self.path) > _MAX_DEPTH:
            raise _error(function, first, f"is called through more than {_MAX_DEPTH} functions")
        if function in self.globals:
            return
        if function.__code__.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
            raise _error(function, first, "is a coroutine: write a plain function")
        if function.__closure__:
            names = ", ".join(function.__code__.co_freevars)
            raise _error(
                function,
                first,
                f"uses {names} of the function around it: compiled functions see only globals",
            )
        scope = dict(function.__globals__)
        self.globals[function] = scope
        self.callees[function] = []
        lines = self.lines[function] = []
        options = (
            function.__defaults__,
            function.__jit__,
            function.__cold__,
            *self._guards(function),
        )
        lines.append(f"def {_name(function)} {options!r}")
        lines.append(_fingerprint(function.__code__))
        self.path.append(function)
        uses = reversed(list(_uses(function, loose=self.loose)))
        for use in sorted({use[:2]: use for use in uses}.values()):
            self._enter(function, scope, use)
        if not self.trusted:
            python = self.loose or function.__intrinsic__
            for mistake in mistakes(function, scope, anything=python):
                raise _error(function, mistake.line, mistake.what)
        self.path.pop()

    def _guards(self, function: Callable) -> dict[str, Any]:
        """Return Numba's extra options for ``function``: none outside the guarded modules."""
        return _GUARDED if function.__module__ in self.guard else {}

    def _enter(self, function: Callable, scope: dict[str, Any], use: _Use) -> None:
        """Enter one global that ``function`` uses into its scope and into the hashed text."""
        name = use.name
        if name in self.bindings:
            check_signature(scope.get(name), self.bindings[name])
            scope[name] = self.bindings[name]
        elif name not in scope:
            if not hasattr(builtins, name):
                raise _error(function, use.line, f"uses {name}, which does not exist")
            if name == "breakpoint" and not self.loose:
                raise _error(
                    function, use.line, "calls breakpoint(), which requires bench.py debug=true"
                )
            if (
                not self.loose
                and name not in _BUILTINS
                and not _is_exception(getattr(builtins, name))
            ):
                raise _error(function, use.line, f"uses {name}, which cannot be compiled")
            return
        value = scope[name] = _resolve_hook(scope[name], self.bindings)
        lines = self.lines[function]
        if self.loose and not is_jit(value):
            return  # nothing is compiled, so nothing is frozen or hashed
        if is_jit(value):
            if name not in self.callees[function]:
                self.callees[function].append(name)
                self._visit(value)
        elif isinstance(value, types.ModuleType):
            lines.append(self._read(function, value, use))
        elif isinstance(value, int) and not isinstance(value, bool):
            scope[name] = value = int(value)  # a setting becomes a plain constant
            lines.append(f"{name} = {value!r}")
        else:
            lines.append(f"{name} = {_hashed_text(function, name, value, use.line)}")

    def _read(self, function: Callable, module: types.ModuleType, use: _Use) -> str:
        """Return the hashed text for the attribute that ``function`` reads of ``module``."""
        shown = f"{use.name}.{use.attribute}" if use.attribute else use.name
        if use.attribute and not hasattr(module, use.attribute):
            raise _error(function, use.line, f"uses {shown}, which does not exist")
        if module.__name__.split(".")[0] in _FOREIGN:
            if use.attribute == "random":
                raise _error(function, use.line, f"uses {shown}: results must be reproducible")
            return f"{module.__name__} {use.attribute}"
        value = getattr(module, use.attribute, None)
        constant = isinstance(value, (int, float, str, tuple))
        if not getattr(module, "HEADER", False) or not constant or use.attribute in self.bindings:
            what = f"uses {shown}: import the name itself, so that a change of it is noticed"
            raise _error(function, use.line, what)
        return f"{module.__name__}.{use.attribute} = {value!r}"

    def key_of(self, function: Callable) -> str:
        """Return the hash (16 hex digits) of ``function`` and of everything that it reaches."""
        if function not in self._keys:
            scope = self.globals[function]
            below = [f"{name}: {self.key_of(scope[name])}" for name in self.callees[function]]
            text = "\n".join([*self.lines[function], *below, *self._environment])
            self._keys[function] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self._keys[function]

    def compile(self, function: Callable, done: dict[Callable, Callable]) -> Callable:
        """Return the specialised copy of ``function``; compile its callees first."""
        if function in done:
            return done[function]
        inner = function is not self.outermost
        key = self.key_of(function)
        if inner and not disabled() and key in _compiled:
            return _compiled[key]
        scope = self.globals[function]
        name = f"{function.__name__}_{key}" if inner else f"{function.__name__}_{key}_entry"
        copy = types.FunctionType(function.__code__, scope, name, function.__defaults__)
        copy.__qualname__ = name
        copy.__module__ = function.__module__
        for callee in self.callees[function]:
            scope[callee] = self.compile(scope[callee], done)
        if not disabled():
            import numba  # late: the import of a plugin must not wait for Numba's start-up

            options = _OPTIONS | _INNER_OPTIONS if inner else _OPTIONS
            if inner:
                from kernel.engine.link import declare_inner

                declare_inner(name, function.__cold__)
            copy = numba.njit(**options | self._guards(function), **function.__jit__)(copy)
            if inner:
                _compiled[key] = copy
        done[function] = copy
        return copy


def _is_exception(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _has_type(value: object) -> bool:
    """Return True if ``value`` is an exception or from a module that Numba supports."""
    home, kind = (str(getattr(v, "__module__", "")).split(".")[0] for v in (value, type(value)))
    return _is_exception(value) or home in _TYPED | {"builtins"} or kind in _TYPED


def _name(function: Callable) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def check_signature(original: object, bound: object) -> None:
    """Raise WalkError if ``bound`` cannot replace ``original``: other parameters, or no result."""
    if not (is_jit(original) and is_jit(bound)):
        return
    least, most = _arity(original)
    fits = _arity(bound)[0] <= least <= most <= _arity(bound)[1]
    if not fits or bound.__code__.co_kwonlyargcount:
        code = bound.__code__
        given, asked = (inspect.signature(f) for f in (bound, original))
        what = f"has the parameters {given}: it must have {asked}"
        raise _error(bound, code.co_firstlineno, what)
    if "return" not in original.__annotations__:
        return
    if not returns_value(bound):
        raise _error(
            bound, bound.__code__.co_firstlineno, "returns nothing: it must return a number"
        )
    if odd := odd_return(bound):
        raise _error(bound, odd.line, odd.what)


def _arity(function: Callable) -> tuple[int, int]:
    """Return the smallest and the largest number of positional arguments."""
    body = getattr(function, "__wrapped__", function)  # of a hook
    most = body.__code__.co_argcount
    return most - len(body.__defaults__ or ()), most


def _hashed_text(function: Callable, name: str, value: object, line: int) -> str:
    """Return the text of a global in the cache key.

    Raises WalkError for a value that can change after it was compiled in.
    """
    if isinstance(value, (bool, float, str, bytes, tuple, type(None))):
        return repr(value)
    if isinstance(value, types.FunctionType):
        raise _error(function, line, f"calls {name}(), which is not marked @jit")
    if isinstance(value, (list, dict, set, bytearray)) and not function.__intrinsic__:
        kind = type(value).__name__
        raise _error(
            function, line, f"reads the {kind} {name}, which can change: compiled code freezes it"
        )
    if hasattr(value, "tobytes") and not isinstance(value, type):
        if getattr(getattr(value, "flags", None), "writeable", False):
            raise _error(
                function,
                line,
                f"reads the array {name}, which can change: compiled code freezes it; "
                f"set {name}.flags.writeable = False",
            )
        if value.nbytes > _MAX_CONSTANT:
            what = f"reads the array {name} of {value.nbytes} bytes; the limit for a constant is "
            raise _error(function, line, f"{what}{_MAX_CONSTANT}: put it into STATE")
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if not function.__intrinsic__ and not _has_type(value):
        kind = type(value).__name__
        what = f"uses {name} ({kind}): compiled code uses numbers, arrays and @jit functions"
        raise _error(function, line, what)
    kind = value if isinstance(value, type) else type(value)
    source = getattr(inspect.getmodule(kind), "__file__", None)
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else ""
    own_name = getattr(value, "__name__", name)
    return f"{kind.__module__}.{kind.__qualname__} {own_name} {digest}"


def _environment() -> list[str]:
    """Return the other inputs of machine code: versions, NUMBA_ flags, the compiling modules."""
    flags = [
        f"{name}={os.environ[name]}"
        for name in sorted(os.environ)
        if name.startswith("NUMBA_") and name != "NUMBA_CACHE_DIR"
    ]
    from importlib.metadata import version

    versions = [f"{p} {version(p)}" for p in ("numba", "llvmlite", "numpy")]
    builder = [
        hashlib.sha256(Path(__file__).with_name(name).read_bytes()).hexdigest()
        for name in ("jit.py", "link.py")
    ]
    return [platform.python_version(), platform.machine(), *versions, *flags, *builder]


def source_hash(function: Callable, *, guard: Collection[str] = (), **bindings: Any) -> str:
    """Return the hash (16 hex digits) of all code and constants that ``build`` would compile.

    Raises WalkError if a reached function cannot be compiled.
    """
    return _Walk(function, bindings, guard).key


def check_fields(
    function: Callable,
    position: int,
    fields: tuple[str, ...],
    *,
    nested: Mapping[str, Collection[str]] | None = None,
    beyond: bool = True,
) -> None:
    """Raise WalkError if ``function`` uses a field that a record does not have.

    The record, of ``fields`` (``nested``: of its records), is argument number ``position``.
    Functions that receive it from ``function`` are searched as well, those in other files only if
    ``beyond``.
    """
    for holder, mistake in unknown_fields(function, position, fields, nested=nested, beyond=beyond):
        raise _error(holder, mistake.line, mistake.what)


def build(
    function: Callable,
    *,
    cache: bool = True,
    guard: Collection[str] = (),
    loose: bool = False,
    trusted: bool = False,
    **bindings: Any,
) -> Callable:
    """Compile ``function`` and all marked functions that it reaches.

    ``bindings`` maps global names to values (marked functions, numbers, booleans) that replace them
    in every function reached.  In functions of the modules named ``guard`` an array index below 0
    or beyond the end raises IndexError, a division by zero ZeroDivisionError, and a shift by too
    many bits ValueError.  With NUMBA_DISABLE_JIT=1 the result is plain Python with the same
    bindings; ``loose`` then also accepts functions that plain Python can run and the compiler
    cannot.  ``trusted``: the functions were built before, and are not searched for mistakes again.
    Raises WalkError if a reached function cannot be compiled.
    """
    compiled = not disabled()
    if not compiled or not trusted:
        walk = _Walk(function, bindings, guard, loose=loose and not compiled, trusted=trusted)
    if compiled:
        from kernel.engine import link  # late: a WalkError must not wait for Numba's start-up

        link.install()
        walk = _Walk(function, link.INTRINSICS | bindings, guard, trusted=True)
    result = walk.compile(walk.outermost, {})
    if cache and not disabled():
        from numba.core import config

        # Numba reads CACHE_DIR when caching is enabled for a function, and only then.
        previous, config.CACHE_DIR = config.CACHE_DIR, str(cache_root() / walk.key)
        try:
            result._cache = link.DiskCache(result.py_func)
        except (OSError, RuntimeError) as error:  # no space for a directory
            warn(f"compile cache {config.CACHE_DIR}: {error}; compiled code is not kept")
        finally:
            config.CACHE_DIR = previous
    return result


def build_once(function: Callable, **bindings: Any) -> Callable:
    """Return :func:`build`'s result, cached for the life of the process; arguments: hashable."""
    return _built(disabled(), function, **bindings)


@cache
def _built(plain: bool, function: Callable, **bindings: Any) -> Callable:
    """Build once for each combination; compiled and plain builds are separate entries."""
    return build(function, **bindings)
