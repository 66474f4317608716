"""Branches of the model that no program can reach on a host, and why: the one table of them."""

from kernel.differential.reach import Rule
from kernel.linux.host.observe import host_settings

_HARNESS = "the kernel's own mappings belong to the harness, which programs leave alone"
_FRAMES = "physical frames and the TLB are not compared with the host: compiled away"
_LAYOUT = "shared memory and files are compared as far as their layout goes: never touched"
_REPLAY = "without pages only for recorded calls (kernel.linux.replay)"
_WINDOW = "the model's window holds every program"
_MEMORY = "memory is not exhausted here"
_SWITCH = "a switch that programs here leave alone"
_HELD = "only allocators look at a page once for several loads"
_NOEXEC = "no file here is on a file system without execution"
_STACK = "a stack grows by less than memory"
_KNOWN = "programs make only calls that the model knows, and set limits by an operation of its own"

#: The first that fits a branch counts.
_OUT_OF_REACH = (
    Rule(_KNOWN, "if resource == RLIMIT_STACK:  else", "setrlimit", r"kernel\.limits"),
    Rule(_KNOWN, r"if nr == uapi\.NR_(SETRLIMIT|MUNLOCK):.*", "syscall", r"kernel\.syscall"),
    Rule(_KNOWN, "if kind == OP_SETRLIMIT:  else", "execute", r"kernel\.linux\.verify\.model"),
    Rule(_STACK, "if not enough_memory.*", "expand_stack", r"kernel\.stack"),
    Rule(_NOEXEC, r"if .*\.VM_(MAY)?EXEC:.*", "_file_flags", r"kernel\.mmap"),
    Rule(_HARNESS, "if moved == 0:  else", "_move_areas", r"kernel\.mremap"),
    Rule(_HARNESS, "if error < 0:", "_mremap_to", r"kernel\.mremap"),
    Rule(_HARNESS, ".*VM_SPECIAL.*"),
    Rule(_MEMORY, r"if _fault_huge.*else", "_fault_page", r"kernel\.fault"),
    Rule(_MEMORY, r"if .*not _fits\(.*\):", "_check_memory|_fault_huge", r"kernel\.fault"),
    Rule(_LAYOUT, r".*(FAULT_FILE|PTE_FILE|vm_file).*", module=r"kernel\.fault"),
    Rule(_LAYOUT, function="_fault_file", module=r"kernel\.fault"),
    Rule(_WINDOW, function="refuse_collision", module=r"kernel\.mmap"),
    Rule(_REPLAY, r"if .*\blayout_only:"),
    Rule(_HELD, r"if not _is_held\(held\):  else", "_loads", r"kernel\.access"),
    Rule(_SWITCH, r"if (not )?(COUNT|CHECKED|PAYLOAD)\b.*"),
    Rule(_FRAMES, r"if f & types\.PTE_SWAP:", "_fault_page", r"kernel\.fault"),
    Rule(_FRAMES, module=r"kernel\.(frames|vmscan|swap|tlb)"),
    Rule(_FRAMES, under=".+"),
)
#: The same, on a host whose overcommit mode is not the key.
_OVERCOMMIT = {
    0: Rule(
        "overcommit mode 0 is not this host's", function="enough_memory", module=r"kernel\.limits"
    ),
    2: Rule(
        "overcommit mode 2 is not this host's",
        "if mm.overcommit == 0:  else",
        "enough_memory",
        r"kernel\.limits",
    ),
}


def rules() -> list[Rule]:
    """All that hold on this host."""
    mode = host_settings()["overcommit_memory"]
    return [*(rule for m, rule in _OVERCOMMIT.items() if m != mode), *_OUT_OF_REACH]
