"""Jobs of bench.py: checked, observed and timed in processes of their own, and their results.

Imports real/ and what is below it; bench.py and twin/ import it.
"""
