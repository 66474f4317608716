"""Linking of a whole loop, which is optimised once, and other changes to Numba's CPU target.

Numba links a function with everything that it calls, optimises and assembles the result, and
repeats this for each caller up the chain: three minutes for a replay loop over the kernel.  Here
*inner* functions (those that only compiled code calls) stay LLVM modules.  The outermost function
links all of them, makes them internal, and is optimised once.  The machine code is also better:
unused arguments disappear, and functions marked cold are never inlined.

Numba's code generator has a class for its libraries; :func:`install` replaces that class.
"""

import functools
import hashlib
import operator
import pickle
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding as ll
from llvmlite import ir
from numba.core import cgutils, event
from numba.core import types as nb
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.callconv import CPUCallConv
from numba.core.codegen import JITCodeLibrary
from numba.core.errors import TypingError
from numba.core.lowering import Lower
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numba.np import arrayobj

from kernel.engine import progress
from kernel.engine.cache import warn

#: True for a cold inner function, False for another one, by qualified name.
_inner: dict[str, bool] = {}


class _NoEnvironment:
    """Code generator of inner functions, which have no environment: they are not assembled."""

    def __init__(self, codegen: object) -> None:
        self._codegen = codegen

    def set_env(self, env_name: str, env: object) -> None:
        """Do nothing: only entry points from Python need an environment."""

    def __getattr__(self, name: str) -> object:
        return getattr(self._codegen, name)


class LinkedOnceLibrary(JITCodeLibrary):
    """Library that stays a plain module if inner, and links its whole call tree if outermost."""

    @property
    def _is_inner(self) -> bool:
        return self.name in _inner

    @property
    def codegen(self) -> object:
        """The code generator; for an inner function, one that sets no environment."""
        return _NoEnvironment(self._codegen) if self._is_inner else self._codegen

    def get_pointer_to_function(self, name: str) -> int:
        """Return the address of a symbol; 0 for inner functions, which are not assembled."""
        return 0 if self._is_inner else super().get_pointer_to_function(name)

    def _tree(self, seen: dict["LinkedOnceLibrary", None]) -> dict["LinkedOnceLibrary", None]:
        """Return all libraries to link: its own, and those of inner libraries, recursively."""
        for library in self._linking_libraries:
            if library not in seen:
                seen[library] = None
                if getattr(library, "_is_inner", False):
                    library._tree(seen)
        return seen

    def finalize(self) -> None:
        """Do nothing if inner; otherwise link the call tree, then optimise and assemble it."""
        if self._is_inner:
            self._finalized = True
            return
        tree = self._tree({})
        own = [library for library in tree if getattr(library, "_is_inner", False)]
        if own:
            self._linking_libraries = [library for library in tree if library not in own]
            for library in own:
                self._reload_init.update(library._reload_init)
                self._final_module.link_in(library._final_module, preserve=True)
            # After linking: a declaration linked later does not resolve to an internal function.
            for library in own:
                for function in library._final_module.functions:
                    if not function.is_declaration:
                        linked = self._final_module.get_function(function.name)
                        linked.linkage = ll.Linkage.internal
                        if _inner[library.name]:
                            linked.add_function_attribute("noinline")
        super().finalize()


def _without_clearing(call_function: Callable) -> Callable:
    """Wrap ``call_function`` so that the slot for the callee's exception is not cleared.

    Numba clears the slot at the caller's entry, so that a fast path pays a store for every slow
    path beside it.  The slot is read only after the callee has raised and therefore set it.
    """

    def lean(self: CPUCallConv, builder: ir.IRBuilder, *args: object, **options: object) -> tuple:
        status, result = call_function(self, builder, *args, **options)
        slot = status.code.args[1]
        for instruction in builder.function.entry_basic_block.instructions:
            if isinstance(instruction, ir.StoreInstr) and instruction.operands[1] is slot:
                cleared = instruction.operands[0]
                instruction.operands = [ir.Constant(cleared.type, ir.Undefined), slot]
        return status, result

    return lean


#: Lower objects that are generating code, innermost last; ``loc`` is their place in the source.
_lowering: list[Lower] = []


def _recording(lower_inst: Callable) -> Callable:
    """Wrap ``lower_inst`` so that its Lower is the last of :data:`_lowering` meanwhile."""

    def recording(self: Lower, inst: object) -> None:
        _lowering.append(self)
        try:
            lower_inst(self, inst)
        finally:
            _lowering.pop()

    return recording


def _with_place(return_user_exc: Callable) -> Callable:
    """Wrap ``return_user_exc`` so that a wrong index or a division by zero has a place.

    The traceback of the exception then ends at the file and line in the source.
    """

    def with_place(
        self: CPUCallConv,
        builder: ir.IRBuilder,
        exc: type,
        exc_args: tuple | None = None,
        loc: object = None,
        func_name: str | None = None,
    ) -> None:
        if loc is None and _lowering:
            loc = _lowering[-1].loc
            func_name = _lowering[-1].func_ir.func_id.func_name
        return_user_exc(self, builder, exc, exc_args, loc, func_name)

    return with_place


def _without_wraparound(fix_integer_index: Callable) -> Callable:
    """Wrap ``fix_integer_index`` so that checked negative indices do not count from the end."""

    def without_wraparound(
        context: object, builder: ir.IRBuilder, idxty: nb.Type, idx: ir.Value, size: ir.Value
    ) -> ir.Value:
        if context.enable_boundscheck:
            return context.cast(builder, idx, idxty, nb.intp if idxty.signed else nb.uintp)
        return fix_integer_index(context, builder, idxty, idx, size)

    return without_wraparound


_SHIFTS = {operator.lshift, operator.rshift, operator.ilshift, operator.irshift}


def _checked(lower_binop: Callable) -> Callable:
    """Wrap ``lower_binop`` so that a shift by less than 0 or more than 63 bits raises ValueError.

    Only where bounds are checked; otherwise the result is undefined.
    """

    def checked(self: Lower, result: nb.Type, expression: object, op: object) -> ir.Value:
        kind = self.typeof(expression.rhs.name)
        if self.context.enable_boundscheck and op in _SHIFTS and isinstance(kind, nb.Integer):
            bits = self.loadvar(expression.rhs.name)
            bits = self.context.cast(self.builder, bits, kind, nb.int64)
            wrong = self.builder.icmp_unsigned(">", bits, bits.type(63))
            with self.builder.if_then(wrong, likely=False):
                message = ("shift by less than 0 or more than 63 bits",)
                self.call_conv.return_user_exc(self.builder, ValueError, message)
        return lower_binop(self, result, expression, op)

    return checked


def declare_inner(name: str, cold: bool) -> None:
    """Declare the function with the qualified name ``name`` inner.  Call it before compiling."""
    _inner[name] = cold


@intrinsic
def load_word(typing_context, base, index):
    """Compile kernel.engine.memory.load_word as one load."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load(builder.gep(pointer, [args[1]]))

    return nb.int64(nb.int64, nb.int64), generate


@intrinsic
def store_word(typing_context, base, index, word):
    """Compile kernel.engine.memory.store_word as one store."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        builder.store(args[2], builder.gep(pointer, [args[1]]))
        return context.get_dummy_value()

    return nb.void(nb.int64, nb.int64, nb.int64), generate


@intrinsic
def load_half_word(typing_context, base, index):
    """Compile kernel.engine.memory.load_half_word as one load."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(16).as_pointer())
        return builder.zext(builder.load(builder.gep(pointer, [args[1]])), ir.IntType(64))

    return nb.int64(nb.int64, nb.int64), generate


@intrinsic
def store_half_word(typing_context, base, index, value):
    """Compile kernel.engine.memory.store_half_word as one store."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(16).as_pointer())
        low = builder.trunc(args[2], ir.IntType(16))
        builder.store(low, builder.gep(pointer, [args[1]]))
        return context.get_dummy_value()

    return nb.void(nb.int64, nb.int64, nb.int64), generate


@intrinsic
def prefetch_word(typing_context, base, index):
    """Compile kernel.engine.memory.prefetch_word as one prefetch for writing."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        address = builder.bitcast(builder.gep(pointer, [args[1]]), ir.IntType(8).as_pointer())
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, flag, flag, flag])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(prefetch, [address, flag(1), flag(3), flag(1)])
        return context.get_dummy_value()

    return nb.void(nb.int64, nb.int64), generate


@intrinsic
def bit_length(typing_context, n):
    """Compile kernel.engine.bits.bit_length as one count of leading zeros."""

    def generate(context, builder, signature, args):
        zero_is_fine = ir.IntType(1)(0)
        return builder.sub(ir.IntType(64)(64), builder.ctlz(args[0], zero_is_fine))

    return nb.int64(nb.int64), generate


@intrinsic
def trailing_zeros(typing_context, n):
    """Compile kernel.engine.bits.trailing_zeros as one count."""

    def generate(context, builder, signature, args):
        return builder.cttz(args[0], ir.IntType(1)(0))

    return nb.int64(nb.int64), generate


#: Conversion of C's printf with which print() writes a value, by type.
_CONVERSIONS = {nb.Boolean: "%d", nb.Integer: "%lld", nb.Float: "%.15g"}


@intrinsic
def print_line(typing_context, *values):  # noqa: ANN002 - types of the call
    """Compile print() of numbers and literal strings as a call of C's printf.

    Numba's own print() calls the interpreter, to which inner functions have no access.
    """
    words = []
    for value in values:
        known = [text for kind, text in _CONVERSIONS.items() if isinstance(value, kind)]
        if isinstance(value, nb.StringLiteral):
            words.append(value.literal_value.replace("%", "%%"))
        elif known:
            words.append(known[0])
        else:
            raise TypingError(f"print() of {value}: compiled code can print numbers and literals")

    def generate(context, builder, signature, args):
        shown = []
        for kind, value in zip(values, cgutils.unpack_tuple(builder, args[0]), strict=True):
            if isinstance(kind, nb.Float):
                shown.append(context.cast(builder, value, kind, nb.float64))
            elif not isinstance(kind, nb.StringLiteral):
                shown.append(context.cast(builder, value, kind, nb.int64))
        cgutils.printf(builder, " ".join(words) + "\n", *shown)
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.IntType(32), [pointer])
        flush = cgutils.get_or_insert_function(builder.module, kind, "fflush")
        builder.call(flush, [pointer(None)])  # all streams
        return context.get_dummy_value()

    return nb.void(nb.StarArgTuple.from_types(values)), generate


#: Intrinsics that build() binds instead of print and of the plain-Python functions of
#: kernel.engine.memory and kernel.engine.bits, by name.
INTRINSICS = {
    "print": print_line,
    "load_word": load_word,
    "store_word": store_word,
    "load_half_word": load_half_word,
    "store_half_word": store_half_word,
    "prefetch_word": prefetch_word,
    "bit_length": bit_length,
    "trailing_zeros": trailing_zeros,
}


class _CacheFile(IndexDataCacheFile):
    """Files of a cached function: those with machine code begin with a checksum."""

    def _save_data(self, name: str, data: object) -> None:
        content = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(hashlib.sha256(content).digest() + content)

    def _load_data(self, name: str) -> object:
        content = Path(self._data_path(name)).read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise ValueError(f"{name}: wrong checksum")
        return pickle.loads(content[32:])

    def _load_index(self) -> dict:
        try:
            return dict(super()._load_index())
        except Exception as error:  # whatever a damaged pickle raises
            _damaged(self._index_path, error)
            return {}


def _damaged(place: object, error: Exception) -> None:
    """Warn of a damaged file, which the compiled code will replace."""
    warn(f"compile cache {place} is damaged ({type(error).__name__}: {error}); it is made anew")


class DiskCache(FunctionCache):
    """Cache of a function's machine code that survives damaged files and a full disk."""

    def __init__(self, function: Callable) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _CacheFile(self._cache_path, self._impl.filename_base, stamp)

    def load_overload(self, sig: object, target_context: object) -> object:
        """Return the compiled code, or None if there is none or it is damaged."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # whatever a damaged pickle or its code raises
            _damaged(self._cache_path, error)
            return None

    def save_overload(self, sig: object, data: object) -> None:
        """Store the compiled code; if there is no space, warn and go on without."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            what = f"it cannot be written ({error.strerror}); compiled code is not kept"
            warn(f"compile cache {Path(self._cache_path).parents[1]}: {what}")  # once for all


class _Compiler(event.Listener):
    """Listener that reports when Numba starts and ends a compilation; compilations nest."""

    depth = 0

    def on_start(self, event: event.Event) -> None:
        """Report the start of the outermost compilation."""
        self.depth += 1
        if self.depth == 1:
            progress.compiler_runs(True)

    def on_end(self, event: event.Event) -> None:
        """Report the end of the outermost compilation."""
        self.depth -= 1
        if self.depth == 0:
            progress.compiler_runs(False)


@functools.cache
def install() -> None:
    """Make Numba's CPU target use the definitions of this module, and change its record types.

    A symbol contains the types of its arguments.  A record type would list all its fields, ten
    kilobytes per symbol, on which LLVM would spend its time, so a hash replaces them.  A record is
    never converted to one that has its first fields: each type gets its own code.
    """
    cpu_target.target_context.codegen()._library_class = LinkedOnceLibrary
    CPUCallConv.call_function = _without_clearing(CPUCallConv.call_function)
    CPUCallConv.return_user_exc = _with_place(CPUCallConv.return_user_exc)
    Lower.lower_inst = _recording(Lower.lower_inst)
    Lower.lower_binop = _checked(Lower.lower_binop)
    arrayobj.fix_integer_index = _without_wraparound(arrayobj.fix_integer_index)

    def mangling_args(self: nb.Type) -> tuple[str, tuple]:
        return type(self).__name__ + hashlib.sha256(self.name.encode()).hexdigest()[:12], ()

    nb.Record.can_convert_to = lambda self, context, other: None
    nb.Record.mangling_args = property(mangling_args)
    nb.NamedTuple.mangling_args = property(mangling_args)
    event.register("numba:compile", _Compiler())
