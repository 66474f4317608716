"""Machine code that plays a program in a process which contains only it and the library.

The host process (kernel.linux.host) maps this code and one shared memory, and calls ``play``.  That
function does with the library's functions what benchmarks.replay.loop does with a plugin's, in the
same order.  It keeps its own table of objects: addresses go from malloc to free inside the
process::

    COMMON     functions, switches                        parent ──► play
    TABLE      an OBJECT for each slot                               play
    a block for each thread:
      CONTROL  addresses of its events, answers and log   parent ◄─► play
      STACKS   its signal stack, its stack
      EVENTS   the events to execute                      parent ──► play
      ANSWERS  results of the events                      parent ◄── play
      LOG      a RECORD for each change of memory         parent ◄── play

A seccomp filter turns every memory system call of the library into a SIGSYS, whose handler is
``trapped``: it records the call and the contents of /proc/self/statm before it, makes the call, and
resumes the library with the result.  After an event that made a call or caused a page fault,
``play`` records statm again.  Nothing can change between two records, so peaks, means and counts
are exact for every event.

With several threads, an event waits until all earlier events of the same object are done, by any
thread: OBJECT.turn counts them.  The parent then calls ``lead`` instead of ``play``: it wakes the
other threads, which wait in ``thread``, plays its own events, and waits for all threads.
"""

import functools
import os

import numpy as np

from allocators.base import operation as ops
from benchmarks.events.touch import TOUCH_ALL, TOUCH_ALL_READ, TOUCH_FIRST
from kernel.counters import CALLS
from kernel.linux.host.code import assembled, executable_memfd
from kernel.linux.host.elf import PAGE_SIZE

#: An event to execute.  ``extra``: an alignment, or the offset of a touch, in bytes.  ``turn``:
#: number of earlier events of the object to wait for; -1: do not wait.
EVENT = np.dtype([("op", "i8"), ("slot", "i8"), ("size", "i8"), ("extra", "i8"), ("turn", "i8")])

#: ``address``: returned to the program, or 0.  ``place``: number of events, of all threads, that
#: had ended before.
ANSWER = np.dtype([("address", "i8"), ("place", "i8")])

#: An object of the program: its block (0: none), its size (-1: its allocation failed), and the
#: number of its events that are done.
OBJECT = np.dtype([("block", "i8"), ("size", "i8"), ("turn", "i8"), ("unused", "i8")])

#: Bytes reserved for the text of /proc/self/statm.
TEXT = 168
#: A change of memory.  ``nr``: number of the system call about to be made, or AFTER (an event);
#: ``event``: index among the thread's events of this batch; ``args`` and ``result`` of the call;
#: ``minflt`` and ``majflt``: faults since the last record with AFTER; ``statm``: (length,)
#: characters.
RECORD = np.dtype(
    [
        ("nr", "i8"),
        ("event", "i8"),
        ("place", "i8"),
        ("args", "i8", (4,)),
        ("result", "i8"),
        ("minflt", "i8"),
        ("majflt", "i8"),
        ("length", "i8"),
        ("statm", "S", TEXT),
    ]
)
AFTER = -1

#: The library's functions, in the order of COMMON.
FUNCTIONS = ("malloc", "calloc", "realloc", "aligned_alloc", "free")
#: Function that a library may lack; its address is then 0.
OPTIONAL = "malloc_trim"

#: Maximum number of threads of a process.
MOST_THREADS = 256

#: ``place``: number of events that have ended.  ``statm``: a file descriptor.  ``touch``: how the
#: program touches a new block (benchmarks.replay.loop).  ``stop``: threads must stop waiting for
#: their turn.  ``other``: blocks of the (``others``) threads that ``lead`` wakes; ``ready``: number
#: of them that have finished the batch.
COMMON = np.dtype(
    [
        *((name, "i8") for name in (*FUNCTIONS, OPTIONAL)),
        ("table", "i8"),
        ("place", "i8"),
        ("statm", "i8"),
        ("options", "i8"),
        ("touch", "i8"),
        ("stop", "i8"),
        ("ready", "i8"),
        ("others", "i8"),
        ("other", "i8", (MOST_THREADS,)),
        ("scratch", "u1", (1024,)),
    ]
)
#: Options: record changes of memory; record after every event (used if system calls cannot be
#: trapped).
OPTION_LOG, OPTION_EVERY = 1, 2

#: A thread's block.  ``own``: its own address, which the thread's gs register holds.  ``count``:
#: events to execute; ``done``: events executed; ``lost``: calls that did not fit into the log.
#: ``go`` and ``finished`` count batches; ``ended``: the thread exits after this batch.
#: ``stack_t``: of sigaltstack(2); ``thread``: its pthread_t.
CONTROL = np.dtype(
    [
        ("own", "i8"),
        ("events", "i8"),
        ("answers", "i8"),
        ("count", "i8"),
        ("done", "i8"),
        ("log", "i8"),
        ("log_end", "i8"),
        ("lost", "i8"),
        ("minflt", "i8"),
        ("majflt", "i8"),
        ("go", "i8"),
        ("finished", "i8"),
        ("ended", "i8"),
        ("stack_t", "i8", (3,)),
        ("thread", "i8"),
        ("rusage", "i8", (18,)),
        ("spare", RECORD),
    ]
)

#: Addresses of the code and of the shared memory, far from all other mappings of a process.
CODE = 0x1F00_0000_0000
SHARED = 0x2000_0000_0000

#: Capacity of a batch in events, and of a log in records.
BATCH = 1 << 16
LOG_ROOM = 1 << 15
#: Records that must be free before an event begins: the most system calls that one event may make.
MARGIN = 1 << 12

SIGNAL_STACK_SIZE = 1 << 16
STACK_SIZE = 1 << 18

#: Numbers of the memory system calls of x86-64.
WATCHED = tuple(number for counter in CALLS for number in counter.calls)

_ASSEMBLY = """
.intel_syntax noprefix
.text

# long play(CONTROL *): execute its events; returns the number done, less than count if the log is
# full.  r15 COMMON, r12 CONTROL, r13 event, rbx object, rbp end of the log before the event

.globl play
play:
play_here:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    sub rsp, 8
    mov r12, rdi
    movabs r15, offset COMMON
    mov r13, [r12 + EVENTS]
    mov qword ptr [r12 + DONE], 0
    call usage
    mov [r12 + MINFLT], rax
    mov [r12 + MAJFLT], rdx

next:
    mov rcx, [r12 + DONE]
    cmp rcx, [r12 + COUNT]
    jae played
    mov rbp, [r12 + LOG]
    lea rdx, [rbp + MARGIN * RECORD_SIZE]
    cmp rdx, [r12 + LOG_END]
    ja full
    mov rbx, [r13 + EVENT_SLOT]
    test rbx, rbx
    js turned
    shl rbx, 5
    add rbx, [r15 + TABLE]
    mov rdx, [r13 + EVENT_TURN]
    test rdx, rdx
    js turned
wait_turn:
    cmp [rbx + OBJECT_TURN], rdx
    je turned
    cmp qword ptr [r15 + STOP], 0
    jne played
    mov eax, 24                         # sched_yield
    syscall
    mov rdx, [r13 + EVENT_TURN]
    jmp wait_turn

turned:
    mov rax, [r13 + EVENT_OP]
    cmp eax, MALLOC
    je do_malloc
    cmp eax, FREE
    je do_free
    cmp eax, REALLOC
    je do_realloc
    cmp eax, CALLOC
    je do_calloc
    cmp eax, ALIGNED
    je do_aligned
    cmp eax, TOUCH_READ
    je do_touch
    cmp eax, TOUCH_WRITE
    je do_touch
    cmp eax, TRIM
    je do_trim
    cmp eax, THREAD_END
    jne nothing                         # mallopt and sbrk are not performed
    mov qword ptr [r12 + ENDED], 1
    jmp nothing

do_malloc:
    mov rdi, [r13 + EVENT_SIZE]
    call [r15 + F_MALLOC]
    jmp born
do_calloc:
    mov edi, 1
    mov rsi, [r13 + EVENT_SIZE]
    call [r15 + F_CALLOC]
    jmp born
do_aligned:
    mov rdi, [r13 + EVENT_EXTRA]
    mov rsi, [r13 + EVENT_SIZE]
    call [r15 + F_ALIGNED_ALLOC]
    jmp born
do_trim:                                # performed as in benchmarks.replay.loop
    xor edi, edi
    cmp [r13 + EVENT_SIZE], rdi
    jne nothing
    cmp [r15 + F_MALLOC_TRIM], rdi
    je nothing
    call [r15 + F_MALLOC_TRIM]
    jmp nothing
do_free:
    test rbx, rbx
    js nothing                          # free(NULL)
    mov rdi, [rbx]
    mov qword ptr [rbx], 0
    test rdi, rdi
    jz forget
    call [r15 + F_FREE]
    jmp nothing
forget:
    mov qword ptr [rbx + OBJECT_BYTES], 0
    jmp nothing
do_realloc:
    mov rdi, [rbx]
    mov rsi, [r13 + EVENT_SIZE]
    test rdi, rdi
    jz realloc_none
    test rsi, rsi
    jz do_free
    call [r15 + F_REALLOC]
    test rax, rax
    jz answer                           # failure keeps the old block
    mov rsi, [rbx + OBJECT_BYTES]
    mov rcx, [r13 + EVENT_SIZE]
    mov [rbx], rax
    mov [rbx + OBJECT_BYTES], rcx
    cmp rcx, rsi
    jle answer
    jmp use
realloc_none:
    cmp qword ptr [rbx + OBJECT_BYTES], 0
    jl nothing
    jmp do_malloc
do_touch:
    mov rdi, [rbx]
    test rdi, rdi
    jz nothing
    add rdi, [r13 + EVENT_EXTRA]
    mov rsi, [r13 + EVENT_SIZE]
    xor edx, edx
    cmp dword ptr [r13 + EVENT_OP], TOUCH_WRITE
    sete dl
    call touch
    jmp nothing

born:                                   # rax: the block of the object, 0 if there is none
    mov [rbx], rax
    mov rcx, [r13 + EVENT_SIZE]
    test rax, rax
    jnz born_well
    mov rcx, -1
born_well:
    mov [rbx + OBJECT_BYTES], rcx
    xor esi, esi                        # all its bytes are new

use:                                    # rax: the block, rsi: where its new bytes begin
    test rax, rax
    jz answer
    mov r14, rax
    mov rcx, [r15 + TOUCH]
    xor edx, edx
    cmp ecx, TOUCH_ALL_READ
    je use_all
    mov edx, 1
    cmp ecx, TOUCH_ALL
    je use_all
    cmp ecx, TOUCH_FIRST
    jne used
    test rsi, rsi
    jnz used
    cmp qword ptr [r13 + EVENT_SIZE], 0
    jle used
    mov rdi, rax
    mov esi, 1
    call touch
    jmp used
use_all:
    lea rdi, [rax + rsi]
    neg rsi
    add rsi, [r13 + EVENT_SIZE]
    call touch
used:
    mov rax, r14
    jmp answer

touch:                                  # rsi bytes at rdi, a byte of each page; rdx: write
    test rsi, rsi
    jle touched
    add rsi, rdi
touch_page:
    test edx, edx
    jz touch_read
    mov byte ptr [rdi], 1
    jmp touch_next
touch_read:
    mov al, [rdi]
touch_next:
    and rdi, -PAGE_SIZE
    add rdi, PAGE_SIZE
    cmp rdi, rsi
    jb touch_page
touched:
    ret

nothing:
    xor eax, eax
answer:
    mov rdx, [r12 + DONE]
    shl rdx, 4
    add rdx, [r12 + ANSWERS]
    mov [rdx], rax
    mov eax, 1
    lock xadd [r15 + PLACE], rax
    mov [rdx + 8], rax
    test qword ptr [r15 + OPTIONS], OPTION_LOG
    jz account_done
    mov r14, rax
    call usage
    mov r9, rax
    mov r10, rdx
    sub r9, [r12 + MINFLT]
    sub r10, [r12 + MAJFLT]
    mov rcx, r9
    or rcx, r10
    jnz account
    cmp rbp, [r12 + LOG]
    jne account
    test qword ptr [r15 + OPTIONS], OPTION_EVERY
    jz account_done
account:
    mov [r12 + MINFLT], rax
    mov [r12 + MAJFLT], rdx
    mov rdi, [r12 + LOG]
    mov qword ptr [rdi + RECORD_NR], -1
    mov [rdi + RECORD_MINFLT], r9
    mov [rdi + RECORD_MAJFLT], r10
    mov [rdi + RECORD_PLACE], r14
    mov rcx, [r12 + DONE]
    mov [rdi + RECORD_EVENT], rcx
    call state
    add qword ptr [r12 + LOG], RECORD_SIZE
account_done:
    cmp qword ptr [r13 + EVENT_SLOT], 0
    jl turn_done
    inc qword ptr [rbx + OBJECT_TURN]   # the next event of the object may begin
turn_done:
    inc qword ptr [r12 + DONE]
    add r13, EVENT_BYTES
    jmp next

full:                                   # threads that wait for this one must return too
    mov qword ptr [r15 + STOP], 1
played:
    mov rax, [r12 + DONE]
    add rsp, 8
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

usage:                                  # faults of this thread so far: rax minor, rdx major
    xor eax, eax
    xor edx, edx
    test qword ptr [r15 + OPTIONS], OPTION_LOG
    jz no_usage
    mov edi, 1                          # RUSAGE_THREAD
    lea rsi, [r12 + RUSAGE]
    mov eax, 98                         # getrusage
    syscall
    mov rax, [r12 + RUSAGE + 64]
    mov rdx, [r12 + RUSAGE + 72]
no_usage:
    ret

state:                                  # read statm into the record at rdi
    mov r8, rdi
    lea rsi, [rdi + RECORD_STATM]
    mov rdi, [r15 + STATM]
    mov edx, TEXT
    xor r10d, r10d
    mov eax, 17                         # pread64
    syscall
    mov [r8 + RECORD_LENGTH], rax
    ret

# long lead(CONTROL *): execute a batch with all threads; returns when all have finished
# rbx other threads left to wake

.globl lead
lead:
    push rbx
    push r12
    push r15
    mov r12, rdi
    movabs r15, offset COMMON
    mov rbx, [r15 + OTHERS]
lead_next:
    dec rbx
    js lead_play
    mov rdi, [r15 + OTHER + 8 * rbx]
    lea rdi, [rdi + GO]
    lock inc qword ptr [rdi]
    mov esi, 1                          # FUTEX_WAKE
    mov edx, 1
    mov eax, 202
    syscall
    jmp lead_next
lead_play:
    mov rdi, r12
    call play_here                      # a global name would be a linker's
lead_wait:
    mov rdx, [r15 + READY]
    cmp rdx, [r15 + OTHERS]
    jae lead_done
    lea rdi, [r15 + READY]
    xor esi, esi                        # FUTEX_WAIT
    xor r10d, r10d
    mov eax, 202
    syscall
    jmp lead_wait
lead_done:
    xor eax, eax
    pop r15
    pop r12
    pop rbx
    ret

# void *thread(CONTROL *): start routine of a thread; executes one batch after the other
# rbx batches finished

.globl thread
thread:
    push rbx
    push r12
    push r15
    mov r12, rdi
    movabs r15, offset COMMON
    mov eax, 158                        # arch_prctl
    mov edi, 0x1001                     # ARCH_SET_GS
    mov rsi, r12
    syscall
    lea rdi, [r12 + STACK_T]
    xor esi, esi
    mov eax, 131                        # sigaltstack
    syscall
    mov rbx, [r12 + FINISHED]
thread_wait:
    cmp [r12 + GO], rbx
    jne thread_go
    lea rdi, [r12 + GO]
    xor esi, esi                        # FUTEX_WAIT
    mov edx, ebx
    xor r10d, r10d
    mov eax, 202
    syscall
    jmp thread_wait
thread_go:
    inc rbx
    mov rdi, r12
    call play_here                      # a global name would be a linker's
    mov [r12 + FINISHED], rbx
    mov rdi, [r12 + ENDED]
    push rdi
    push rdi
    lock inc qword ptr [r15 + READY]
    lea rdi, [r15 + READY]
    mov esi, 1                          # FUTEX_WAKE
    mov edx, 1
    mov eax, 202
    syscall
    pop rdi
    pop rdi
    test rdi, rdi
    jz thread_wait
    xor eax, eax
    pop r15
    pop r12
    pop rbx
    ret

# Handler of SIGSYS for a memory call: rdi SIGSYS, rsi siginfo_t, rdx ucontext_t; the return from
# the signal restores all registers

.globl trapped
trapped:
    mov rbx, rdx
    mov r12, gs:[0]
    movabs r15, offset COMMON
    mov r14d, [rsi + 24]                # si_syscall
    mov r13, [r12 + LOG]
    cmp r13, [r12 + LOG_END]
    jae trap_lost
    add qword ptr [r12 + LOG], RECORD_SIZE
    jmp trap_record
trap_lost:
    inc qword ptr [r12 + LOST]
    lea r13, [r12 + SPARE]
trap_record:
    mov [r13 + RECORD_NR], r14
    mov rcx, [r12 + DONE]
    mov [r13 + RECORD_EVENT], rcx
    mov rcx, [r15 + PLACE]
    mov [r13 + RECORD_PLACE], rcx
    xor ecx, ecx
    mov [r13 + RECORD_MINFLT], rcx
    mov [r13 + RECORD_MAJFLT], rcx
    mov rdi, r13
    call state
    mov rdi, [rbx + 104]                # the registers of the interrupted code
    mov rsi, [rbx + 112]
    mov rdx, [rbx + 136]
    mov r10, [rbx + 56]
    mov r8, [rbx + 40]
    mov r9, [rbx + 48]
    mov [r13 + RECORD_ARGS], rdi
    mov [r13 + RECORD_ARGS + 8], rsi
    mov [r13 + RECORD_ARGS + 16], rdx
    mov [r13 + RECORD_ARGS + 24], r10
    mov rax, r14
    syscall
    mov [r13 + RECORD_RESULT], rax
    mov [rbx + 144], rax                # rax of the interrupted code
    ret

.globl restorer
restorer:
    mov eax, 15                         # rt_sigreturn
    syscall
"""


def _offsets(prefix: str, dtype: np.dtype) -> dict[str, int]:
    """Return the offsets of a record's fields by their names in the assembly."""
    return {f"{prefix}{name.upper()}": at for name, (_type, at) in dtype.fields.items()}


def _constants() -> dict[str, int]:
    """Return the constants of the assembly by name."""
    common = {
        f"F_{name}" if name.lower() in (*FUNCTIONS, OPTIONAL) else name: at
        for name, at in _offsets("", COMMON).items()
    }
    event = _offsets("EVENT_", EVENT)
    object_ = _offsets("OBJECT_", OBJECT)
    object_["OBJECT_BYTES"] = object_.pop("OBJECT_SIZE")
    return {
        **common,
        **_offsets("", CONTROL),
        **event,
        **object_,
        **_offsets("RECORD_", RECORD),
        "COMMON": SHARED,
        "EVENT_BYTES": EVENT.itemsize,
        "RECORD_SIZE": RECORD.itemsize,
        "MARGIN": MARGIN,
        "TEXT": TEXT,
        "PAGE_SIZE": PAGE_SIZE,
        "MALLOC": ops.MALLOC,
        "FREE": ops.FREE,
        "REALLOC": ops.REALLOC,
        "CALLOC": ops.CALLOC,
        "ALIGNED": ops.ALIGNED,
        "TRIM": ops.TRIM,
        "THREAD_END": ops.THREAD_END,
        "TOUCH_READ": ops.TOUCH_READ,
        "TOUCH_WRITE": ops.TOUCH_WRITE,
        "TOUCH_ALL": TOUCH_ALL,
        "TOUCH_ALL_READ": TOUCH_ALL_READ,
        "TOUCH_FIRST": TOUCH_FIRST,
        "OPTION_LOG": OPTION_LOG,
        "OPTION_EVERY": OPTION_EVERY,
    }


@functools.cache
def code_file() -> tuple[int, dict[str, int]]:
    """Assemble the code into a file of one page.

    Returns its descriptor and the addresses of the entry points in the process.
    """
    text, entries = assembled(_ASSEMBLY, _constants())
    if len(text) > PAGE_SIZE:
        raise AssertionError("the machine code is larger than its page")
    fd = executable_memfd()
    os.write(fd, text.ljust(PAGE_SIZE, b"\0"))
    return fd, {name: CODE + place for name, place in entries.items()}
