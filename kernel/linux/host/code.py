"""Machine code of the host process, and of the function that communicates with it.

LLVM's assembler, which comes with Numba's llvmlite, assembles the code below: no compiler and no
linker is needed.  The code has three entry points: the host process starts at ``child``; Python
calls ``parent`` (through ctypes) to submit a batch and wait for its results; ``thread`` is the
start routine of further threads in the child.

The C library's pthread_create starts these threads, with the thread's number as the argument.  One
thread at a time executes operations, and OP_SWITCH makes another one continue with the next
operation.  All others sleep, so that everything the process does is done by that thread.

Memory of the child, all in one 2 MiB slot so that it needs only one page of page-table entries::

    HARNESS           shared memory: control page, stack, signal stack, operations, results
    CODE              the program: ELF header and code, one page
    CODE + 4096       initial program break

The harness uses only the shared memory, all of which the child touches before the first operation:
all page faults counted afterwards are caused by the operations.
"""

import ctypes
import functools
import mmap
import os
from collections.abc import Mapping

import numpy as np

from kernel.linux.host.elf import PAGE_SIZE, ElfFile, program

(
    OP_SYSCALL,
    OP_LOAD,
    OP_STORE,
    OP_TOUCH,
    OP_CALL,
    OP_NOP,
    OP_SETRLIMIT,
    OP_CLOCK,
    OP_SWITCH,
    OP_JOIN,
) = range(10)

#: Maximum number of operations in a batch.
CHUNK = 1024

#: One operation.  ``nr``: number of the system call.  OP_SWITCH: thread ``args[0]`` continues; 0 is
#: the first thread.  OP_JOIN: thread ``args[1]`` returns from its start routine, and the function
#: at ``args[0]``, pthread_join, waits for it.  The value of both is -ESRCH if the thread does not
#: exist.
OP = np.dtype([("kind", "i8"), ("nr", "i8"), ("args", "i8", (6,))])

#: Result of one operation.  ``value``: result register of the system call (negative errno), word
#: loaded, pages touched, return value of the function, or nanoseconds of clock ``args[0]``
#: (numbered as for clock_gettime).  ``sig``, ``si_code``, ``si_addr``: signal that ended the
#: operation, or 0.  ``minflt``, ``majflt``: page faults that the operation caused.
RESULT = np.dtype(
    [
        ("value", "i8"),
        ("sig", "i8"),
        ("si_code", "i8"),
        ("si_addr", "i8"),
        ("minflt", "i8"),
        ("majflt", "i8"),
    ]
)

#: Start of the control page, which both processes share.
CONTROL = np.dtype(
    {
        "names": [
            *("command", "child_sleeps", "done", "parent_sleeps"),
            *("count", "options", "spin", "usage_of"),
        ],
        "formats": ["u4", "u4", "u4", "u4", "i8", "i8", "i8", "i8"],
        # different sides write command and done, so each is in a separate cache line
        "offsets": [0, 4, 64, 68, 128, 136, 144, 152],
    }
)
#: Option: leave minflt and majflt at 0, which is twice as fast.
OPTION_NO_FAULTS = 1
#: Scope of the fault counts, with getrusage's numbers.  Counting those of the thread costs half as
#: much, and suffices for a process with a single thread.  With several threads the process is
#: counted, in which only one thread is awake.
USAGE_OF_PROCESS, USAGE_OF_THREAD = 0, 1

#: Maximum number of concurrent threads, including the first.
MAX_THREADS = 64
#: Bytes that a thread touches below its initial stack pointer before its first operation.
THREAD_STACK = 16 << 12
#: Offset in the control page where pthread_create stores the threads' handles, 8 bytes each.
HANDLES = 0x600

#: File descriptor of the shared memory in the child, which closes it after mapping the memory.
SHARED_FD = 3

CODE = 0x5555_5555_4000
HARNESS = 0x5555_5540_0000
STACK_END = 0x11000
SIGNAL_STACK = STACK_END
SIGNAL_STACK_SIZE = 0x8000
OPS = SIGNAL_STACK + SIGNAL_STACK_SIZE
RESULTS = OPS + CHUNK * OP.itemsize
HARNESS_SIZE = RESULTS + CHUNK * RESULT.itemsize

#: Exit status of a child that could not map its shared memory or set its signal handlers.
EXIT_SET_UP = 120

#: Errors returned for an unknown operation (as Linux does for system calls) and an unknown thread.
_ENOSYS, _ESRCH = 38, 3

_ASSEMBLY = """
.intel_syntax noprefix
.text

# ---- the child -----------------------------------------------------------------------------------
# r15 shared memory, r12 operation, r13 its result, r14 operations left; rbx pages touched
# for each thread: GO is 0 to wait, 1 to run, 2 to exit; STACKS is its initial stack pointer

.globl child
child:
    mov eax, 9                          # mmap
    movabs rdi, offset HARNESS
    mov esi, HARNESS_SIZE
    mov edx, 3                          # PROT_READ | PROT_WRITE
    mov r10d, 0x8011                    # MAP_SHARED | MAP_FIXED | MAP_POPULATE
    mov r8d, SHARED_FD
    xor r9d, r9d
    syscall
    cmp rax, rdi
    jne give_up
    mov r15, rdi
    lea rsp, [r15 + STACK_END]
    mov [r15 + STACKS], rsp
    mov qword ptr [r15 + HANDLES], 1
    mov eax, 3                          # close
    mov edi, SHARED_FD
    syscall

    # Populating a shared mapping only reads it: also write to every page once.
    mov rdi, r15
    lea rsi, [r15 + HARNESS_SIZE]
touch_own:
    lock or dword ptr [rdi], 0
    add rdi, 4096
    cmp rdi, rsi
    jb touch_own

    lea rdi, [r15 + SCRATCH]            # stack_t: address, flags, size
    lea rax, [r15 + SIGNAL_STACK]
    mov [rdi], rax
    mov qword ptr [rdi + 8], 0
    mov qword ptr [rdi + 16], SIGNAL_STACK_SIZE
    xor esi, esi
    mov eax, 131                        # sigaltstack
    syscall
    test rax, rax
    jnz give_up

    lea rsi, [r15 + SCRATCH]            # sigaction: handler, flags, restorer, mask
    lea rax, [rip + handler]
    mov [rsi], rax
    mov qword ptr [rsi + 8], 0x4c000004 # SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTORER
    lea rax, [rip + restorer]
    mov [rsi + 16], rax
    mov qword ptr [rsi + 24], 0
    mov edi, 11                         # SIGSEGV
    call sigaction
    mov edi, 7                          # SIGBUS
    call sigaction
    jmp finished                        # signals the parent that the child is ready

sigaction:
    xor edx, edx
    mov r10d, 8
    mov eax, 13                         # rt_sigaction
    syscall
    test rax, rax
    jnz give_up
    ret

give_up:
    mov edi, EXIT_SET_UP
    mov eax, 231                        # exit_group
    syscall

wait_command:
    mov ebx, [r15 + DONE]
    mov rcx, [r15 + SPIN]
spin:
    cmp [r15 + COMMAND], ebx
    jne run
    pause
    dec rcx
    jg spin
    mov eax, 1
    xchg [r15 + CHILD_SLEEPS], eax      # full barrier: the parent sees this, or we see its command
sleep:
    cmp [r15 + COMMAND], ebx
    jne awake
    lea rdi, [r15 + COMMAND]
    xor esi, esi                        # FUTEX_WAIT
    mov edx, ebx
    xor r10d, r10d
    mov eax, 202                        # futex
    syscall
    jmp sleep
awake:
    mov dword ptr [r15 + CHILD_SLEEPS], 0

run:
    lea r12, [r15 + OPS]
    lea r13, [r15 + RESULTS]
    mov r14, [r15 + COUNT]
    call usage
    mov [r15 + MINFLT], rax
    mov [r15 + MAJFLT], rdx

next:
    test r14, r14
    jz finished
    mov [r15 + SAVED], r12              # a called function may be ended by a signal
    mov [r15 + SAVED + 8], r13
    mov [r15 + SAVED + 16], r14
    mov rax, [r12]
    test rax, rax
    jz do_syscall
    cmp rax, 1
    je do_load
    cmp rax, 2
    je do_store
    cmp rax, 3
    je do_touch
    cmp rax, 4
    je do_call
    cmp rax, 5
    je do_nop
    cmp rax, 6
    je do_setrlimit
    cmp rax, 7
    je do_clock
    cmp rax, 8
    je do_switch
    cmp rax, 9
    je do_join
    mov rax, -ENOSYS
    jmp answer

do_syscall:
    mov rax, [r12 + 8]
    mov rdi, [r12 + 16]
    mov rsi, [r12 + 24]
    mov rdx, [r12 + 32]
    mov r10, [r12 + 40]
    mov r8, [r12 + 48]
    mov r9, [r12 + 56]
    syscall
    jmp answer

do_load:
    mov rax, [r12 + 16]
    mov rax, [rax]
    jmp answer

do_store:
    mov rax, [r12 + 16]
    mov rdx, [r12 + 24]
    mov [rax], rdx
do_nop:
    xor eax, eax
    jmp answer

do_touch:
    xor ebx, ebx
    mov rdi, [r12 + 16]
    mov rsi, [r12 + 24]
    mov rdx, [r12 + 32]
    mov rcx, [r12 + 40]
    test rsi, rsi
    jle touched
    add rsi, rdi
    and rdi, -4096
touch_page:
    cmp rdi, rsi
    jae touched
    test rdx, rdx
    jnz touch_write
    mov rax, [rdi]
    jmp touch_next
touch_write:
    mov [rdi], rcx
touch_next:
    inc rbx
    add rdi, 4096
    jmp touch_page
touched:
    mov rax, rbx
    jmp answer

do_call:
    mov rax, [r12 + 16]
    mov rdi, [r12 + 24]
    mov rsi, [r12 + 32]
    mov rdx, [r12 + 40]
    mov rcx, [r12 + 48]
    call rax
    jmp answer

do_setrlimit:
    xor edi, edi
    mov rsi, [r12 + 16]
    xor edx, edx
    lea r10, [r15 + SCRATCH]
    mov eax, 302                        # prlimit64: read the hard limit in order to keep it
    syscall
    test rax, rax
    jnz answer
    mov rax, [r12 + 24]
    mov [r15 + SCRATCH], rax
    lea rdx, [r15 + SCRATCH]
    xor r10d, r10d
    mov eax, 302
    syscall
    jmp answer

do_clock:
    mov rdi, [r12 + 16]
    lea rsi, [r15 + SCRATCH]            # timespec: seconds, nanoseconds
    mov eax, 228                        # clock_gettime
    syscall
    test rax, rax
    jnz answer
    imul rax, [r15 + SCRATCH], 1000000000
    add rax, [r15 + SCRATCH + 8]
    jmp answer

do_switch:
    mov rbp, [r15 + TURN]
    mov rbx, [r12 + 16]
    cmp rbx, rbp
    je switched
    call must_be_there
    mov dword ptr [r15 + 4 * rbp + GO], 0
    mov [r15 + TURN], rbx
    mov edx, 1
    call go
wait_turn:                              # rbp: own number; the next operation is in SAVED
    mov eax, [r15 + 4 * rbp + GO]
    cmp eax, 1
    je taken
    cmp eax, 2
    je thread_ends
    lea rdi, [r15 + 4 * rbp + GO]
    xor esi, esi                        # FUTEX_WAIT
    xor edx, edx
    xor r10d, r10d
    mov eax, 202
    syscall
    jmp wait_turn
taken:
    mov r12, [r15 + SAVED]
    mov r13, [r15 + SAVED + 8]
    mov r14, [r15 + SAVED + 16]
switched:
    xor eax, eax
    jmp answer

go:                                     # set GO of thread rbx to edx (1 run, 2 exit) and wake it
    lea rdi, [r15 + 4 * rbx + GO]
    xchg [rdi], edx
    mov esi, 1                          # FUTEX_WAKE
    mov edx, 1
    mov eax, 202
    syscall
    ret

must_be_there:                          # return if thread rbx exists, else answer -ESRCH
    mov rax, -ESRCH
    cmp qword ptr [r15 + 8 * rbx + HANDLES], 0
    jne is_there
    add rsp, 8
    jmp answer
is_there:
    ret

do_join:
    mov rbx, [r12 + 24]
    call must_be_there
    mov edx, 2
    call go
    mov rdi, [r15 + 8 * rbx + HANDLES]
    xor esi, esi
    call [r12 + 16]                     # pthread_join, which preserves rbx
    mov dword ptr [r15 + 4 * rbx + GO], 0
    mov qword ptr [r15 + 8 * rbx + HANDLES], 0

answer:
    mov [r13], rax
    xor eax, eax
    mov [r13 + 8], rax
    mov [r13 + 16], rax
    mov [r13 + 24], rax
account:
    call usage
    mov rcx, rax
    sub rcx, [r15 + MINFLT]
    mov [r13 + 32], rcx
    mov [r15 + MINFLT], rax
    mov rcx, rdx
    sub rcx, [r15 + MAJFLT]
    mov [r13 + 40], rcx
    mov [r15 + MAJFLT], rdx
    add r12, OP_SIZE
    add r13, RESULT_SIZE
    dec r14
    jmp next

usage:                                  # total faults so far: rax minor, rdx major
    xor eax, eax
    xor edx, edx
    test qword ptr [r15 + OPTIONS], OPTION_NO_FAULTS
    jnz no_usage
    mov rdi, [r15 + USAGE_OF]
    lea rsi, [r15 + RUSAGE]
    mov eax, 98                         # getrusage
    syscall
    mov rax, [r15 + RUSAGE + 64]
    mov rdx, [r15 + RUSAGE + 72]
no_usage:
    ret

finished:
    mov eax, [r15 + COMMAND]
    xchg [r15 + DONE], eax
    cmp dword ptr [r15 + PARENT_SLEEPS], 0
    je wait_command
    lea rdi, [r15 + DONE]
    mov esi, 1                          # FUTEX_WAKE
    mov edx, 1
    mov eax, 202
    syscall
    jmp wait_command

handler:                                # rdi signal, rsi siginfo_t, rdx ucontext_t
    movabs rcx, offset HARNESS
    mov [rcx + SIGNAL], rdi
    movsxd rax, dword ptr [rsi + 8]     # si_code
    mov [rcx + SIGNAL + 8], rax
    mov rax, [rsi + 16]                 # si_addr
    mov [rcx + SIGNAL + 16], rax
    lea rax, [rip + recover]
    mov [rdx + 168], rax                # rip: where the interrupted code resumes
    ret
restorer:
    mov eax, 15                         # rt_sigreturn
    syscall
recover:
    cld
    movabs r15, offset HARNESS
    mov rax, [r15 + TURN]
    mov rsp, [r15 + 8 * rax + STACKS]
    mov r12, [r15 + SAVED]
    mov r13, [r15 + SAVED + 8]
    mov r14, [r15 + SAVED + 16]
    xor eax, eax
    cmp qword ptr [r12], 3
    jne signalled
    mov rax, rbx
signalled:
    mov [r13], rax
    mov rax, [r15 + SIGNAL]
    mov [r13 + 8], rax
    mov rax, [r15 + SIGNAL + 8]
    mov [r13 + 16], rax
    mov rax, [r15 + SIGNAL + 16]
    mov [r13 + 24], rax
    jmp account

# ---- another thread: void *thread(number) --------------------------------------------------------

.globl thread
thread:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    sub rsp, 8
    movabs r15, offset HARNESS
    mov rbp, rdi
    mov [r15 + 8 * rbp + STACKS], rsp
    lea rax, [rsp - THREAD_STACK]
touch_stack:                            # so that no operation faults there
    mov qword ptr [rax], 0
    add rax, 4096
    cmp rax, rsp
    jb touch_stack
    jmp wait_turn
thread_ends:
    mov rsp, [r15 + 8 * rbp + STACKS]
    xor eax, eax
    add rsp, 8
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

# ---- the parent: int parent(shared memory, sequence number, spins, struct timespec *) ------------
# returns 0 if the child has answered, 1 after a timeout or a signal

.globl parent
parent:
    push rbx
    push r12
    push r13
    push r14
    mov rbx, rdi
    mov r12d, esi
    mov r13, rdx
    mov r14, rcx
    xchg [rbx + COMMAND], esi
    cmp dword ptr [rbx + CHILD_SLEEPS], 0
    je parent_spin
    lea rdi, [rbx + COMMAND]
    mov esi, 1                          # FUTEX_WAKE
    mov edx, 1
    mov eax, 202
    syscall
parent_spin:
    cmp [rbx + DONE], r12d
    je parent_done
    pause
    dec r13
    jg parent_spin
    mov eax, 1
    xchg [rbx + PARENT_SLEEPS], eax
parent_sleep:
    mov edx, [rbx + DONE]
    cmp edx, r12d
    je parent_done
    lea rdi, [rbx + DONE]
    xor esi, esi                        # FUTEX_WAIT
    mov r10, r14
    mov eax, 202
    syscall
    cmp rax, -110                       # ETIMEDOUT
    je parent_tired
    cmp rax, -4                         # EINTR: let Python handle its signals
    jne parent_sleep
parent_tired:
    mov eax, 1
    jmp parent_return
parent_done:
    xor eax, eax
parent_return:
    mov dword ptr [rbx + PARENT_SLEEPS], 0
    pop r14
    pop r13
    pop r12
    pop rbx
    ret
"""


def _constants() -> dict[str, int]:
    """Return the values of the symbols that the assembly uses."""
    return {
        **{name.upper(): CONTROL.fields[name][1] for name in CONTROL.names},
        "SCRATCH": 256,
        "SAVED": 320,
        "SIGNAL": 384,
        "MINFLT": 448,
        "MAJFLT": 456,
        "TURN": 464,
        "RUSAGE": 512,
        "GO": 0x300,
        "STACKS": 0x400,
        "HANDLES": HANDLES,
        "THREAD_STACK": THREAD_STACK,
        "HARNESS": HARNESS,
        "HARNESS_SIZE": HARNESS_SIZE,
        "STACK_END": STACK_END,
        "SIGNAL_STACK": SIGNAL_STACK,
        "SIGNAL_STACK_SIZE": SIGNAL_STACK_SIZE,
        "OPS": OPS,
        "RESULTS": RESULTS,
        "OP_SIZE": OP.itemsize,
        "RESULT_SIZE": RESULT.itemsize,
        "OPTION_NO_FAULTS": OPTION_NO_FAULTS,
        "SHARED_FD": SHARED_FD,
        "EXIT_SET_UP": EXIT_SET_UP,
        "ENOSYS": _ENOSYS,
        "ESRCH": _ESRCH,
    }


@functools.cache
def assemble() -> tuple[bytes, dict[str, int]]:
    """Return the machine code and the offsets of ``child``, ``thread`` and ``parent``."""
    return assembled(_ASSEMBLY, _constants())


def assembled(assembly: str, constants: Mapping[str, int]) -> tuple[bytes, dict[str, int]]:
    """Assemble x86-64 code; return the machine code and the offsets of its global symbols.

    The code must not refer to external symbols other than ``constants``.
    """
    import llvmlite.binding as llvm  # late: only this function needs it

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    triple = "x86_64-unknown-linux-gnu"
    equations = [f".set {name}, {value}" for name, value in constants.items()]
    lines = "\n".join([*equations, *assembly.splitlines()]).splitlines()
    quoted = [f'module asm "{line}"' for line in lines]
    module = llvm.parse_assembly("\n".join([f'target triple = "{triple}"', *quoted]))
    machine = llvm.Target.from_triple(triple).create_target_machine()
    compiled = ElfFile(machine.emit_object(module))
    if compiled.has(".rela.text"):
        raise AssertionError("the host's code needs relocations, which only a linker resolves")
    entries = {name: value for name, (value, _kind) in compiled.symbols(".symtab").items()}
    return compiled.section(".text"), entries


class HarnessCode:
    """The program in a memfd, which is also mapped in this process to call its ``parent`` function.

    ``fd``: descriptor to execute.  ``parent(shared, sequence, spins, timeout)``: see the assembly.
    ``thread``: address of that entry point in the child.
    """

    def __init__(self, *, libc: bool) -> None:
        text, places = assemble()
        image = program(text, places["child"], CODE, libc=libc)
        self.fd = executable_memfd()
        os.write(self.fd, image)
        self._map = mmap.mmap(
            self.fd, PAGE_SIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC
        )
        address = np.frombuffer(self._map, "u1").ctypes.data
        start = image.index(text)
        self.thread = CODE + start + places["thread"]
        entry = address + start + places["parent"]
        prototype = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int64, ctypes.c_void_p
        )
        self.parent = prototype(entry)


@functools.cache
def harness_program(*, libc: bool = False) -> HarnessCode:
    """Return the program, with or without the C library; each is built once."""
    return HarnessCode(libc=libc)


def executable_memfd() -> int:
    """Create an executable memfd.  Raises OSError if the system forbids it."""
    mfd_exec = 0x10  # since Linux 6.3, where a sysctl may make memfds non-executable by default
    try:
        return os.memfd_create("host", os.MFD_CLOEXEC | mfd_exec)
    except OSError:
        return os.memfd_create("host", os.MFD_CLOEXEC)
