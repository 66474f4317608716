"""Compilation and execution of the model: @jit and build, the linker, switches, memory, records.

Imports nothing from the rest of the model, which is built on it; any other package may import it.
"""
