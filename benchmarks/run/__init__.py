"""Jobs of bench.py: checking the configuration, observing and timing in child processes, results.

Imports real/ and the layers below it; bench.py and twin/ import it.
"""
