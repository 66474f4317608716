"""Shared parts of workloads: the registry, random numbers, size distributions, pieces, budgets.

Imports trace/ and the layers below it, but no workload; workloads and the layers above import it.
"""
