"""Atomic load-acquire and store-release of words that threads share.

Importing this module imports the compiler.
"""

from llvmlite import ir
from numba.core import types as nb
from numba.extending import intrinsic


@intrinsic
def load_acquire(typing_context, base, index):
    """Load word ``index`` of the array at address ``base``, with acquire ordering."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(builder.gep(pointer, [args[1]]), "acquire", 8)

    return nb.int64(nb.int64, nb.int64), generate


@intrinsic
def store_release(typing_context, base, index, word):
    """Store word ``index`` of the array at address ``base``, with release ordering."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        builder.store_atomic(args[2], builder.gep(pointer, [args[1]]), "release", 8)
        return context.get_dummy_value()

    return nb.void(nb.int64, nb.int64, nb.int64), generate
