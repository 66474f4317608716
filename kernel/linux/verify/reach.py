"""Table of the branches of the model that no program can reach on a host, with reasons."""

from kernel.differential.reach import Rule
from kernel.linux.host.observe import host_settings

_HARNESS = "special mappings belong to the harness, which programs do not change"
_FRAMES = "physical frames and the TLB are not compared with the host, so they are not compiled in"
_LAYOUT = "only the layout of shared memory and files is compared: programs never access them"
_REPLAY = "only replays of recorded calls run without pages (kernel.linux.replay)"
_WINDOW = "every program fits into the model's window"
_MEMORY = "programs do not exhaust memory"
_SWITCH = "programs do not change this switch"
_HELD = "only allocators check a page once for several loads"
_NOEXEC = "no file is on a file system mounted noexec"
_STACK = "a stack never grows by more than the size of memory"
_KNOWN = "programs make only calls that the model supports, and set limits by OP_SETRLIMIT"

#: The first rule that matches a branch applies.
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
#: Rules that apply if the host's overcommit mode is not the key.
_OVERCOMMIT = {
    0: Rule(
        "this host is not in overcommit mode 0", function="enough_memory", module=r"kernel\.limits"
    ),
    2: Rule(
        "this host is not in overcommit mode 2",
        "if mm.overcommit == 0:  else",
        "enough_memory",
        r"kernel\.limits",
    ),
}


def rules() -> list[Rule]:
    """Return the rules that apply on this host."""
    mode = host_settings()["overcommit_memory"]
    return [*(rule for m, rule in _OVERCOMMIT.items() if m != mode), *_OUT_OF_REACH]
