"""Events: what a program asks of its allocator, how they are stored and told.

The lowest storey of benchmarks/: imports only the kernel's engine; every other storey imports it.
"""
