"""Validation of the twin (allocators.ptmalloc) against the real glibc: operations and times.

This is the top layer of benchmarks/: it may import any other, and no other imports it.
"""
