"""Memory system calls by name and number, and the constants that strace prints by name."""

from kernel import uapi
from kernel.linux.replay.ptrace import Watch

#: Names of the recorded calls by their number on x86-64.
CALLS = {
    9: "mmap",
    10: "mprotect",
    11: "munmap",
    12: "brk",
    25: "mremap",
    26: "msync",
    27: "mincore",
    28: "madvise",
    30: "shmat",
    67: "shmdt",
    149: "mlock",
    150: "munlock",
    151: "mlockall",
    152: "munlockall",
    206: "io_setup",
    207: "io_destroy",
    216: "remap_file_pages",
    237: "mbind",
    238: "set_mempolicy",
    239: "get_mempolicy",
    256: "migrate_pages",
    279: "move_pages",
    325: "mlock2",
    329: "pkey_mprotect",
    440: "process_madvise",
    450: "set_mempolicy_home_node",
    453: "map_shadow_stack",
    462: "mseal",
}
NUMBERS = {name: number for number, name in CALLS.items()}

SETRLIMIT, PRLIMIT64 = 160, 302
CLONE, FORK, VFORK, CLONE3 = 56, 57, 58, 435
EXECVE, EXECVEAT = 59, 322
IOCTL, PRCTL = 16, 157
UFFDIO_REGISTER, UFFDIO_UNREGISTER = 0xC020AA00, 0x8010AA01
PR_SET_MM, PR_SET_VMA, PR_SET_VMA_ANON_NAME = 35, 0x53564D41, 0

#: Calls at which the recorder stops a program.
WATCHED = [
    *(Watch(number) for number in CALLS),
    *(Watch(number) for number in (SETRLIMIT, PRLIMIT64, CLONE, FORK, VFORK, CLONE3)),
    *(Watch(number) for number in (EXECVE, EXECVEAT)),
    Watch(IOCTL, 1, (UFFDIO_REGISTER, UFFDIO_UNREGISTER)),
    Watch(PRCTL, 0, (PR_SET_MM, PR_SET_VMA)),
]
#: Calls of 32-bit programs, which are recorded but not replayed: brk, mmap, munmap, mprotect,
#: mremap, mmap2.
WATCHED_I386 = [45, 90, 91, 125, 163, 192]

#: Bits of a personality.
ADDR_NO_RANDOMIZE, ADDR_COMPAT_LAYOUT = 0x40000, 0x200000

CLONE_VM, CLONE_VFORK, CLONE_THREAD = 0x100, 0x4000, 0x10000

MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
MS_ASYNC, MS_INVALIDATE, MS_SYNC = 1, 2, 4
SHM_EXEC, SHM_RDONLY, SHM_RND, SHM_REMAP = 0o100000, 0o10000, 0o20000, 0o40000
MADV_REMOVE, MADV_MERGEABLE, MADV_UNMERGEABLE = 9, 12, 13

_PREFIXES = ("PROT_", "MAP_", "MREMAP_", "MADV_", "RLIMIT_")
#: Values of the constants by their names in an strace log.
CONSTANTS: dict[str, int] = {
    **{name: value for name, value in vars(uapi).items() if name.startswith(_PREFIXES)},
    "NULL": 0,
    "PROT_SEM": 8,
    "MAP_FILE": 0,
    "MAP_UNINITIALIZED": 0x4000000,
    "MAP_DROPPABLE": 8,
    "MLOCK_ONFAULT": 1,
    "MADV_REMOVE": MADV_REMOVE,
    "MADV_MERGEABLE": MADV_MERGEABLE,
    "MADV_UNMERGEABLE": MADV_UNMERGEABLE,
    "MADV_COLLAPSE": 25,
    "MADV_HWPOISON": 100,
    "MADV_SOFT_OFFLINE": 101,
    "MADV_GUARD_INSTALL": 102,
    "MADV_GUARD_REMOVE": 103,
    "MCL_CURRENT": MCL_CURRENT,
    "MCL_FUTURE": MCL_FUTURE,
    "MCL_ONFAULT": MCL_ONFAULT,
    "MS_ASYNC": MS_ASYNC,
    "MS_INVALIDATE": MS_INVALIDATE,
    "MS_SYNC": MS_SYNC,
    "SHM_EXEC": SHM_EXEC,
    "SHM_RDONLY": SHM_RDONLY,
    "SHM_RND": SHM_RND,
    "SHM_REMAP": SHM_REMAP,
    "CLONE_VM": CLONE_VM,
    "CLONE_VFORK": CLONE_VFORK,
    "CLONE_THREAD": CLONE_THREAD,
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
    "MPOL_F_NUMA_BALANCING": 0x2000,
    "MPOL_F_RELATIVE_NODES": 0x4000,
    "MPOL_F_STATIC_NODES": 0x8000,
    "RLIM64_INFINITY": 2**64 - 1,
    "RLIM_INFINITY": 2**64 - 1,
}
