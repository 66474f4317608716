"""An operation of a program: as numbers for both sides, as words for people, as text in a file."""

import json
from pathlib import Path
from typing import NamedTuple

from kernel import uapi

#: What an operation is (the harness of kernel.linux.host knows the same numbers).
OP_SYSCALL, OP_LOAD, OP_STORE, OP_TOUCH = 0, 1, 2, 3
OP_SETRLIMIT = 6

_WORD = (1 << 64) - 1


class Op(NamedTuple):
    """One operation; ``label`` is the kind under which it is counted."""

    label: str
    kind: int
    nr: int
    args: tuple[int, ...]

    def words(self) -> str:
        """The operation as strace would print it."""
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
    """A system call, its arguments as 64-bit numbers with a sign."""
    return Op(label, OP_SYSCALL, nr, tuple(signed(a) for a in args))


def signed(value: int) -> int:
    """``value`` modulo 2**64 as a number with a sign, which is how registers are stored."""
    value &= _WORD
    return value - (1 << 64) if value >> 63 else value


def errno_name(value: int) -> str:
    """Name of the errno that a negative return value stands for."""
    return _ERRNOS.get(-value, f"errno {-value}")


def result_words(value: int, sig: int, si_code: int, si_addr: int) -> str:
    """What an operation gave, in words."""
    if sig:
        name = {7: "SIGBUS", 11: "SIGSEGV"}.get(sig, f"signal {sig}")
        code = {1: "MAPERR", 2: "ACCERR"}.get(si_code, f"code {si_code}")
        return f"{name} ({code}) at {si_addr:#x}"
    if -4096 < value < 0:
        return f"-1 {errno_name(value)}"
    return f"{value:#x}" if value > 9 else str(value)


def dump(path: Path, setting: dict, ops: list[Op]) -> None:
    """Store a program and how its process was set up."""
    rows = [[op.label, op.kind, op.nr, [hex(a) for a in op.args]] for op in ops]
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    path.write_text(
        f'{{"setting": {json.dumps(setting)},\n"operations": [\n{lines}\n]}}\n', encoding="utf-8"
    )


def load(path: Path) -> tuple[dict, list[Op]]:
    """Read a stored program; ValueError with the place of what is wrong."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        ops = [
            Op(str(label), int(kind), int(nr), tuple(int(a, 16) for a in args))
            for label, kind, nr, args in data["operations"]
        ]
        setting = dict(data["setting"])
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a stored program ({error})") from None
    for n, op in enumerate(ops):
        if len(op.args) > 6 or not all(-(1 << 63) <= a < 1 << 63 for a in op.args):
            raise ValueError(f"{path}: operation {n} has impossible arguments")
    return setting, ops


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
