"""Figures and tables from stored results.  Nothing here runs an allocator.

Imports the table of metrics (benchmarks.replay.metrics) and no other part of the project.
"""

from kernel.engine.command import begin

begin()
