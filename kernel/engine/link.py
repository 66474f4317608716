"""Optimise a loop once, whole, instead of every function together with all that it calls.

Numba compiles a function by linking in everything it calls, optimising the lot and assembling it,
and does so anew for each caller up the chain: three minutes for a replay loop over the kernel.
Here *inner* functions (those that only compiled code calls) are kept as plain LLVM modules; the
outermost function links all of them, makes them internal, and meets the optimiser once.  The
machine code is better for it: unused arguments go, and what is marked cold is never inlined.

The hook is Numba's own: a code generator makes its libraries from a class, and this is another.
"""

import functools
import hashlib
from collections.abc import Callable

import llvmlite.binding as ll
from llvmlite import ir
from numba.core import cgutils
from numba.core import types as nb
from numba.core.callconv import CPUCallConv
from numba.core.codegen import JITCodeLibrary
from numba.core.errors import TypingError
from numba.core.lowering import Lower
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numba.np import arrayobj

#: Qualified names of inner functions, and whether they are cold.
_inner: dict[str, bool] = {}


class _NoEnvironment:
    """A code generator for inner functions: nothing of theirs is in the engine to be told about."""

    def __init__(self, codegen: object) -> None:
        self._codegen = codegen

    def set_env(self, env_name: str, env: object) -> None:
        """Skip what only entry points from Python need."""

    def __getattr__(self, name: str) -> object:
        return getattr(self._codegen, name)


class LinkedOnceLibrary(JITCodeLibrary):
    """A plain module while inner; links its whole call tree when outermost."""

    @property
    def _is_inner(self) -> bool:
        return self.name in _inner

    @property
    def codegen(self) -> object:
        """The code generator, less the environment for inner functions."""
        return _NoEnvironment(self._codegen) if self._is_inner else self._codegen

    def get_pointer_to_function(self, name: str) -> int:
        """0 for inner functions, which are never assembled on their own."""
        return 0 if self._is_inner else super().get_pointer_to_function(name)

    def _tree(self, seen: dict["LinkedOnceLibrary", None]) -> dict["LinkedOnceLibrary", None]:
        """All libraries to link, inner ones followed down."""
        for library in self._linking_libraries:
            if library not in seen:
                seen[library] = None
                if getattr(library, "_is_inner", False):
                    library._tree(seen)
        return seen

    def finalize(self) -> None:
        """Do nothing while inner; else link the call tree, then optimise and assemble it."""
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
            # Only now: an internal function would not answer the declarations still to come.
            for library in own:
                for function in library._final_module.functions:
                    if not function.is_declaration:
                        linked = self._final_module.get_function(function.name)
                        linked.linkage = ll.Linkage.internal
                        if _inner[library.name]:
                            linked.add_function_attribute("noinline")
        super().finalize()


def _unset(call_function: Callable) -> Callable:
    """A ``call_function`` that leaves the slot for the callee's exception unset.

    Numba clears the slot where the caller begins, so that a fast path pays a store for every slow
    path beside it.  It is read only after the callee has raised, and so has set it.
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


#: The Lower that generates code now, whose ``loc`` is the place in the source.
_lowering: list[Lower] = []


def _entered(lower_inst: Callable) -> Callable:
    """A ``lower_inst`` during which :data:`_lowering` ends with its Lower."""

    def entered(self: Lower, inst: object) -> None:
        _lowering.append(self)
        try:
            lower_inst(self, inst)
        finally:
            _lowering.pop()

    return entered


def _located(return_user_exc: Callable) -> Callable:
    """A ``return_user_exc`` that names file and line also of a wrong index or a division by zero.

    The traceback of what is raised ends there.
    """

    def located(
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

    return located


def _unwrapped(fix_integer_index: Callable) -> Callable:
    """A ``fix_integer_index`` for which, where bounds are checked, no index counts from the end."""

    def unwrapped(
        context: object, builder: ir.IRBuilder, idxty: nb.Type, idx: ir.Value, size: ir.Value
    ) -> ir.Value:
        if context.enable_boundscheck:
            return context.cast(builder, idx, idxty, nb.intp if idxty.signed else nb.uintp)
        return fix_integer_index(context, builder, idxty, idx, size)

    return unwrapped


def declare_inner(name: str, cold: bool) -> None:
    """Announce that the function of qualified name ``name`` is inner, before it is compiled."""
    _inner[name] = cold


@intrinsic
def load_word(typing_context, base, index):
    """kernel.memory.load_word as one load."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load(builder.gep(pointer, [args[1]]))

    return nb.int64(nb.int64, nb.int64), generate


@intrinsic
def store_word(typing_context, base, index, word):
    """kernel.memory.store_word as one store."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        builder.store(args[2], builder.gep(pointer, [args[1]]))
        return context.get_dummy_value()

    return nb.void(nb.int64, nb.int64, nb.int64), generate


@intrinsic
def load_half_word(typing_context, base, index):
    """kernel.memory.load_half_word as one load."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(16).as_pointer())
        return builder.zext(builder.load(builder.gep(pointer, [args[1]])), ir.IntType(64))

    return nb.int64(nb.int64, nb.int64), generate


@intrinsic
def store_half_word(typing_context, base, index, value):
    """kernel.memory.store_half_word as one store."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(16).as_pointer())
        low = builder.trunc(args[2], ir.IntType(16))
        builder.store(low, builder.gep(pointer, [args[1]]))
        return context.get_dummy_value()

    return nb.void(nb.int64, nb.int64, nb.int64), generate


@intrinsic
def prefetch_word(typing_context, base, index):
    """kernel.memory.prefetch_word as one prefetch for writing."""

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
    """kernel.engine.bits.bit_length as one count of leading zeros."""

    def generate(context, builder, signature, args):
        zero_is_fine = ir.IntType(1)(0)
        return builder.sub(ir.IntType(64)(64), builder.ctlz(args[0], zero_is_fine))

    return nb.int64(nb.int64), generate


@intrinsic
def trailing_zeros(typing_context, n):
    """kernel.engine.bits.trailing_zeros as one count."""

    def generate(context, builder, signature, args):
        return builder.cttz(args[0], ir.IntType(1)(0))

    return nb.int64(nb.int64), generate


#: How print() writes a value, by its type: a conversion of C's printf.
_CONVERSIONS = {nb.Boolean: "%d", nb.Integer: "%lld", nb.Float: "%.15g"}


@intrinsic
def print_line(typing_context, *values):  # noqa: ANN002 - types of the call
    """print() of numbers and literal strings, by C's stdio.

    Numba's own needs the interpreter, which inner functions know nothing of.
    """
    words = []
    for value in values:
        known = [text for kind, text in _CONVERSIONS.items() if isinstance(value, kind)]
        if isinstance(value, nb.StringLiteral):
            words.append(value.literal_value.replace("%", "%%"))
        elif known:
            words.append(known[0])
        else:
            raise TypingError(f"print() of {value}: compiled code prints numbers and literal text")

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


#: What build() binds in place of print and of the plain-Python functions of kernel.engine.memory
#: and kernel.engine.bits.
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


@functools.cache
def install() -> None:
    """Make Numba's CPU target use what is defined here, and treat records otherwise.

    A symbol spells the types of its arguments; a record's would list all its fields, ten
    kilobytes a name, and LLVM would spend its time on them: it becomes a hash.  And a record is
    never taken for one whose fields it begins with, but code is made for each.
    """
    cpu_target.target_context.codegen()._library_class = LinkedOnceLibrary
    CPUCallConv.call_function = _unset(CPUCallConv.call_function)
    CPUCallConv.return_user_exc = _located(CPUCallConv.return_user_exc)
    Lower.lower_inst = _entered(Lower.lower_inst)
    arrayobj.fix_integer_index = _unwrapped(arrayobj.fix_integer_index)

    def mangling_args(self: nb.Type) -> tuple[str, tuple]:
        return type(self).__name__ + hashlib.sha256(self.name.encode()).hexdigest()[:12], ()

    nb.Record.can_convert_to = lambda self, context, other: None
    nb.Record.mangling_args = property(mangling_args)
    nb.NamedTuple.mangling_args = property(mangling_args)
