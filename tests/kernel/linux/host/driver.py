"""Short constructors of operations for the host process."""

import numpy as np

from kernel.linux.host.code import OP, OP_LOAD, OP_STORE, OP_SYSCALL, OP_TOUCH

PAGE = 4096
HUGE_PAGE = 2 << 20
READ, WRITE = 1, 2
ANONYMOUS = 0x22
FIXED = 0x10
#: An address far from all other mappings, a multiple of 1 GiB.
PLACE = 0x2000_0000_0000


def op(kind, *args, nr=0):
    record = np.zeros(1, OP)
    record["kind"], record["nr"] = kind, nr
    record["args"][0, : len(args)] = args
    return record


def syscall(nr, *args):
    return op(OP_SYSCALL, *args, nr=nr)


def mmap(length, prot=READ | WRITE, flags=ANONYMOUS, at=0, fd=-1, offset=0):
    return syscall(9, at, length, prot, flags, fd, offset)


def munmap(start, length):
    return syscall(11, start, length)


def madvise(start, length, advice):
    return syscall(28, start, length, advice)


def touch(start, length, write=1):
    return op(OP_TOUCH, start, length, write, 7)


def load(address):
    return op(OP_LOAD, address)


def store(address, word=7):
    return op(OP_STORE, address, word)


def one(host, operation):
    """Run one operation; return its RESULT."""
    return host.run(operation)[0]


def value(host, operation):
    return int(host.run(operation)["value"][0])
