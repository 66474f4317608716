"""Heap profiles, which hold totals and no events: recognised only to say why they are refused."""

import re

#: (pattern of the beginning of a file, what it is).
_PROFILES = (
    (re.compile(rb"\Adesc: [^\n]*\ncmd: [^\n]*\ntime_unit: "), "a massif profile"),
    (re.compile(rb'\A\s*\{\s*"dhatFileVersion"'), "a DHAT profile"),
    (re.compile(rb"\Aheap profile:\s"), "a heap profile of tcmalloc or Go"),
    (re.compile(rb"\Aheap_v\d+/\d+\s"), "a heap profile of jemalloc"),
    # A message whose first field is a sample type: two numbers of strings.
    (re.compile(rb"\A\x0a\x04\x08[\x00-\x7f]\x10[\x00-\x7f]"), "a pprof profile"),
)


def reason(head: bytes) -> str | None:
    """Return why a file that begins with ``head`` cannot be replayed; None for no profile."""
    for pattern, what in _PROFILES:
        if pattern.search(head):
            return (
                f"{what} holds totals by call site, no single requests, so that it cannot be "
                "replayed; record the program with python -m benchmarks.trace record"
            )
    return None
