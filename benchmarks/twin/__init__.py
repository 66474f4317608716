"""The twin (allocators.ptmalloc) against the real glibc: every operation, and predicted times.

The top storey of benchmarks/: imports any other and is imported by none.
"""
