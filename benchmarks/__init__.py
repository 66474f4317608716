"""Workloads, traces, the replay loop, measurement and results, in eight storeys.

    events < trace < workloads < replay < speed < real < run < twin

Each imports only those before it, besides allocators/ and kernel/.  ``python -m benchmarks`` lists
the project's commands.
"""
