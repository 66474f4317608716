"""Timed comparisons: quantities, rounds, the machine's condition, and paired statistics.

quantities.py     warm, cold and end-to-end time
statistics.py     paired log ratios with intervals, the A/A floor, verdicts
machine.py        load, stolen time, processor settings; instruction counts
"""
