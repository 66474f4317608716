"""Rules that can be verified on this host; the only module that depends on the kernel version."""

from typing import Any

from kernel.linux.host import kernel_version, unavailable
from kernel.linux.host.observe import host_settings

#: Oldest kernel whose rules the model follows (placement of large mappings).
OLDEST = (6, 7)
#: First kernel whose mremap moves several areas at once, as the model's does.
MOVES_AREAS = (6, 17)


def cannot_serve(thp: str) -> str:
    """Return, in one line, why this host cannot serve as the reference; '' if it can.

    ``thp``: "on", "off" or "both", the value of --thp.
    """
    if reason := unavailable():
        return reason
    version = kernel_version()
    if version < OLDEST:
        return f"unsupported: Linux {_dotted(version)} (the model covers 6.7 and later)"
    found = host_settings()
    sizes = {
        size: choice
        for size, choice in found["thp_sizes"].items()
        if size != 2 << 20 and choice not in (None, "never")
    }
    if sizes:
        return "unsupported: huge pages of " + ", ".join(
            f"{s >> 10} KiB ({c})" for s, c in sorted(sizes.items())
        )
    if found["numa_balancing"]:
        return "unsupported: NUMA balancing is on, which causes additional page faults"
    if found["ksm_run"]:
        return "unsupported: KSM is on, which merges pages"
    if found["swap"]:
        return "unsupported: the host has swap, so pages may be swapped out at any time"
    if thp == "on":
        if not huge_pages():
            return "--thp on: transparent huge pages are disabled on this host"
        if found["thp_use_zero_page"] == 0:
            return "--thp on: the host does not use the huge zero page"
    return ""


def huge_pages() -> bool:
    """Return True if the host provides huge pages at least to programs that request them."""
    return host_settings()["thp_enabled"] in ("madvise", "always")


def modes(thp: str) -> dict[str, Any]:
    """Return the modes that are verified on this host, and those that only unit tests cover."""
    found = host_settings()
    mode = found["overcommit_memory"]
    enabled = found["thp_enabled"] or "never"
    verified = [
        f"overcommit mode {mode}",
        "RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK, RLIMIT_STACK (without capabilities)",
        "top-down, legacy and randomised layouts",
        "pages of 4 KiB",
    ]
    written = [f"overcommit mode {m}" for m in (0, 1, 2) if m != mode]
    if thp == "off":
        written.append("transparent huge pages (--thp off)")
    else:
        verified.append(f"transparent huge pages: {enabled}")
    written += [
        f"transparent huge pages: {m}"
        for m in ("never", "madvise", "always")
        if m != enabled and thp != "off"
    ]
    written.append("physical frames, swap, pages of 16 and 64 KiB")
    if kernel_version() < MOVES_AREAS:
        written.append("mremap of several areas at once (Linux 6.17)")
    return {"kernel": found["release"], "verified": verified, "written_rules_only": written}


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
