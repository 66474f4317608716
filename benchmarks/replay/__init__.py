"""Replay of a workload: one compiled loop, the simulation around it, and the resulting metrics.

Imports workloads/ and the layers below it; analysis/ reads only the table of metrics.
"""
