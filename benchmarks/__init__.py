"""Workloads, traces, the replay loop, measurement and results."""
