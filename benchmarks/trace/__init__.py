"""Traces of real programs: other tools' formats, the recorder, shipped traces, and trace tools.

Imports events/; its command is ``python -m benchmarks.trace``.
"""
