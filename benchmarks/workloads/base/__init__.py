"""What workloads are made of: the registry, random numbers, size laws, pieces, budgets.

Imports trace/ and what is below it, and no workload; the workloads and the storeys above import it.
"""
