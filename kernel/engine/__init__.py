"""Compilation and execution of the model: @jit and build, the linker, switches, memory, records.

Progress is here as well, because it reports when something is compiled, and what all commands
share: command (arguments, errors, streams) and output (files of results).  Imports nothing from the
rest of the model, which is built on it; any other package may import it.
"""
