"""The replay: one compiled loop, the simulation around it, and the metrics that it yields.

Imports workloads/ and what is below it; analysis/ reads its table of metrics and nothing else.
"""
