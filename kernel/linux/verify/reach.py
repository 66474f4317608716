"""Branches of the model that no program can reach on a host, and why: the one table of them."""

import re

from kernel.engine.branches import Branch
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

#: (module, function, pattern of the text, why); each a regular expression that must match wholly.
_OUT_OF_REACH: tuple[tuple[str, str, str, str], ...] = (
    (r"kernel\.(frames|vmscan|swap|tlb)", ".*", ".*", _FRAMES),
    (r"kernel\.fault", "_fault_page", r"if f & types\.PTE_SWAP:", _FRAMES),
    (".*", ".*", r"if (not )?(COUNT|CHECKED|PAYLOAD)\b.*", _SWITCH),
    (r"kernel\.access", "_loads", r"if not _is_held\(held\):  else", _HELD),
    (".*", ".*", r"if .*\blayout_only:", _REPLAY),
    (r"kernel\.mmap", "refuse_collision", ".*", _WINDOW),
    (r"kernel\.fault", "_fault_file", ".*", _LAYOUT),
    (r"kernel\.fault", ".*", r".*(FAULT_FILE|PTE_FILE|vm_file).*", _LAYOUT),
    (r"kernel\.fault", "_check_memory|_fault_huge", r"if .*not _fits\(.*\):", _MEMORY),
    (r"kernel\.fault", "_fault_page", r"if _fault_huge.*else", _MEMORY),
    (".*", ".*", ".*VM_SPECIAL.*", _HARNESS),
    (r"kernel\.mremap", "_mremap_to", "if error < 0:", _HARNESS),
    (r"kernel\.mremap", "_move_areas", "if moved == 0:  else", _HARNESS),
    (r"kernel\.mmap", "_file_flags", r"if .*\.VM_(MAY)?EXEC:.*", _NOEXEC),
    (r"kernel\.stack", "expand_stack", "if not enough_memory.*", _STACK),
    (r"kernel\.linux\.verify\.model", "execute", "if kind == OP_SETRLIMIT:  else", _KNOWN),
    (r"kernel\.syscall", "syscall", r"if nr == uapi\.NR_(SETRLIMIT|MUNLOCK):.*", _KNOWN),
    (r"kernel\.limits", "setrlimit", "if resource == RLIMIT_STACK:  else", _KNOWN),
)
#: The same, on a host whose overcommit mode is not the key.
_OVERCOMMIT = {
    0: (r"kernel\.limits", "enough_memory", ".*", "overcommit mode 0 is not this host's"),
    2: (
        r"kernel\.limits",
        "enough_memory",
        "if mm.overcommit == 0:  else",
        "overcommit mode 2 is not this host's",
    ),
}


def out_of_reach(branches: list[Branch]) -> dict[int, str]:
    """Numbers of the branches that are out of reach, with the reason."""
    mode = host_settings()["overcommit_memory"]
    rules = [*_OUT_OF_REACH, *(rule for m, rule in _OVERCOMMIT.items() if m != mode)]
    found = {b.number: _FRAMES for b in branches if b.under}
    return found | {
        b.number: why
        for b in branches
        for module, function, text, why in rules
        if re.fullmatch(module, b.module)
        and re.fullmatch(function, b.function)
        and re.fullmatch(text, b.text)
    }
