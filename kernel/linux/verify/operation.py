"""Operations of programs: as numbers for both sides, as readable text, and as JSON."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from kernel import uapi

#: Values of Op.kind, equal to those of kernel.linux.host.code.
OP_SYSCALL, OP_LOAD, OP_STORE, OP_TOUCH = 0, 1, 2, 3
OP_SETRLIMIT = 6

_WORD = (1 << 64) - 1


class Op(NamedTuple):
    """Operation of a program; ``label`` is the kind under which it is counted."""

    label: str
    kind: int
    nr: int
    args: tuple[int, ...]

    def arguments(self) -> tuple[int, ...]:
        """Return all six arguments, padded with zeros."""
        return self.args + (0,) * (6 - len(self.args))

    def describe(self) -> str:
        """Return the operation as strace would print it."""
        if self.kind == OP_LOAD:
            return f"load({self.args[0]:#x})"
        if self.kind == OP_STORE:
            return f"store({self.args[0]:#x}, {self.args[1]})"
        if self.kind == OP_TOUCH:
            verb = "write" if self.args[2] else "read"
            return f"{verb}_pages({self.args[0]:#x}, {self.args[1]})"
        if self.kind == OP_SETRLIMIT:
            return f"setrlimit({_name(_RLIMITS, self.args[0])}, {_size(self.args[1])})"
        name, forms = _CALLS.get(self.nr, (f"syscall_{self.nr}", ()))
        shown = [form(a) for form, a in zip(forms, self.args, strict=False)]
        return f"{name}({', '.join(shown)})"


def syscall(label: str, nr: int, *args: int) -> Op:
    """Return a system call with its arguments as signed 64-bit integers."""
    return Op(label, OP_SYSCALL, nr, tuple(signed(a) for a in args))


def signed(value: int) -> int:
    """Return ``value`` modulo 2**64 as a signed integer, the form in which registers are stored."""
    value &= _WORD
    return value - (1 << 64) if value >> 63 else value


def errno_name(value: int) -> str:
    """Return the name of the errno in a negative return value."""
    return _ERRNOS.get(-value, f"errno {-value}")


def result_words(value: int, sig: int, si_code: int, si_addr: int) -> str:
    """Return the result of an operation as text."""
    if sig:
        name = {7: "SIGBUS", 11: "SIGSEGV"}.get(sig, f"signal {sig}")
        code = {1: "MAPERR", 2: "ACCERR"}.get(si_code, f"code {si_code}")
        return f"{name} ({code}) at {si_addr:#x}"
    if -4096 < value < 0:
        return f"-1 {errno_name(value)}"
    return f"{value:#x}" if value > 9 else str(value)


def encode(op: Op) -> list[Any]:
    """Return the operation as a JSON row."""
    return [op.label, op.kind, op.nr, [hex(a) for a in op.args]]


def decode(row: list[Any]) -> Op:
    """Return the operation of a JSON row.  Raises ValueError or TypeError if it is invalid."""
    label, kind, nr, args = row
    op = Op(str(label), int(kind), int(nr), tuple(int(a, 16) for a in args))
    if len(op.args) > 6 or not all(-(1 << 63) <= a < 1 << 63 for a in op.args):
        raise ValueError("has more than six arguments, or one beyond 64 bits")
    return op


_ERRNOS = {
    value: name
    for name, value in vars(uapi).items()
    if name.startswith("E") and isinstance(value, int)
}
_RLIMITS = {v: n for n, v in vars(uapi).items() if n.startswith("RLIMIT_")}
_MADVICE = {v: n for n, v in vars(uapi).items() if n.startswith("MADV_")}
_PROT = {1: "PROT_READ", 2: "PROT_WRITE", 4: "PROT_EXEC"}
_PROT |= {uapi.PROT_GROWSDOWN: "PROT_GROWSDOWN", uapi.PROT_GROWSUP: "PROT_GROWSUP"}
_MAP = {
    v: n
    for n, v in vars(uapi).items()
    if n.startswith("MAP_") and n not in ("MAP_TYPE", "MAP_SHARED_VALIDATE")
}
_MREMAP = {v: n for n, v in vars(uapi).items() if n.startswith("MREMAP_")}


def _name(table: dict[int, str], value: int) -> str:
    return table.get(value, str(value))


def _hex(value: int) -> str:
    return hex(value) if value >= 0 else hex(value & _WORD)


def _size(value: int) -> str:
    return "RLIM_INFINITY" if value == uapi.RLIM_INFINITY else str(value)


def _flags(table: dict[int, str], none: str):
    def form(value: int) -> str:
        names = [n for bit, n in table.items() if value & bit]
        rest = value & ~sum(table)
        return "|".join(names + ([hex(rest)] if rest else [])) or none

    return form


_prot = _flags(_PROT, "PROT_NONE")


def _map_flags(value: int) -> str:
    if value & uapi.MAP_TYPE == uapi.MAP_SHARED_VALIDATE:
        rest = value & ~uapi.MAP_TYPE
        return "MAP_SHARED_VALIDATE" + ("|" + _flags(_MAP, "")(rest) if rest else "")
    return _flags(_MAP, "0")(value)


def _advice(value: int) -> str:
    return _name(_MADVICE, value)


_CALLS = {
    uapi.NR_MMAP: ("mmap", (_hex, str, _prot, _map_flags, str, _hex)),
    uapi.NR_MUNMAP: ("munmap", (_hex, str)),
    uapi.NR_BRK: ("brk", (_hex,)),
    uapi.NR_MREMAP: ("mremap", (_hex, str, str, _flags(_MREMAP, "0"), _hex)),
    uapi.NR_MPROTECT: ("mprotect", (_hex, str, _prot)),
    uapi.NR_MADVISE: ("madvise", (_hex, str, _advice)),
    uapi.NR_MLOCK: ("mlock", (_hex, str)),
    uapi.NR_MLOCK2: ("mlock2", (_hex, str, str)),
    uapi.NR_MUNLOCK: ("munlock", (_hex, str)),
}
#: Indices of the arguments that are lengths in bytes, by system call.
_LENGTHS = {
    uapi.NR_MMAP: (1,),
    uapi.NR_MUNMAP: (1,),
    uapi.NR_MPROTECT: (1,),
    uapi.NR_MADVISE: (1,),
    uapi.NR_MREMAP: (1, 2),
}
_PAGE = 4096


def variants(op: Op) -> Iterator[Op]:
    """Yield strictly simpler forms of an operation, the simplest first."""

    def with_argument(n: int, value: int) -> Op:
        return op._replace(args=(*op.args[:n], value, *op.args[n + 1 :]))

    if op.kind == OP_STORE and op.args[1] != 1:
        yield with_argument(1, 1)
    if op.kind == OP_TOUCH and op.args[1] > _PAGE:
        yield with_argument(1, _PAGE)
        yield with_argument(1, op.args[1] // 2 // _PAGE * _PAGE)
    if op.kind != OP_SYSCALL:
        return
    if op.nr == uapi.NR_MREMAP and op.args[1] == op.args[2] > _PAGE:
        for length in (_PAGE, op.args[1] // 2 // _PAGE * _PAGE):
            if length:
                yield op._replace(args=(op.args[0], length, length, *op.args[3:]))
    for n in _LENGTHS.get(op.nr, ()):
        length = op.args[n]
        if length > _PAGE:
            yield with_argument(n, _PAGE)
            yield with_argument(n, length // 2 // _PAGE * _PAGE or _PAGE)
            if length % _PAGE:
                yield with_argument(n, length // _PAGE * _PAGE)
            else:
                yield with_argument(n, length - _PAGE)
    if op.nr == uapi.NR_MMAP:
        flags = op.args[3]
        for bit in range(6, 21):
            if flags >> bit & 1:
                yield with_argument(3, flags & ~(1 << bit))
    if op.nr in (uapi.NR_MMAP, uapi.NR_MPROTECT) and op.args[2] not in (0, 3):
        yield with_argument(2, 3)
    if op.nr == uapi.NR_MADVISE and op.args[2] > uapi.MADV_DONTNEED:
        yield with_argument(2, uapi.MADV_DONTNEED)
