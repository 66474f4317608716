"""Jobs of bench.py: check a configuration, observe and time it in child processes, store results.

Imports real/ and the layers below it; bench.py and twin/ import it.
"""
