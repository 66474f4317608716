"""Figures and tables from stored results.  Nothing here runs an allocator.

Imports the table of metrics (benchmarks.replay.metrics), the statistics of timing
(benchmarks.timing), and what every command needs (kernel.engine.command and output).
"""

from kernel.engine.command import begin

begin()
