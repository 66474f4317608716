"""How the model is compiled and run: jit's walk, the linker, switches, simulated memory, records.

Progress is here too: it tells of the compiler.  Imports nothing of the model, which is built on it;
everything above may import it.
"""
