"""Kinds of kernel work that have a price, and what they cost together."""

#: Kinds of kernel work that a cost table prices, nanoseconds each.
COSTS = (
    "brk",
    "mmap",
    "munmap",
    "madvise",
    "mremap",
    "mprotect",
    "mlock",
    "fault_write",
    "fault_read",
    "fault_cow",
    "fault_populate",
    "fault_huge",
    "fault_file",
    "fault_major",
    "swap_out",
    "page_returned",
    "huge_page_returned",
)
