"""Traces of real programs: formats of other tools, our recorder, the shipped ones, and tools.

Imports events/; ``python -m benchmarks.trace`` is its command.
"""
