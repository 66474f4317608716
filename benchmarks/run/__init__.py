"""Jobs of bench.py: check a configuration, observe and time it in child processes, store results.

Imports timing/ and the layers below it; bench.py, speed/ and twin/ import it.
"""
