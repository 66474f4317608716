"""Events: a program's requests to its allocator, the trace file format, and progress display.

The lowest layer of benchmarks/: imports only the allocators' operations and contract and the
kernel's engine; every other layer imports it.
"""
