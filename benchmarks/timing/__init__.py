"""Timed comparisons: interleaved rounds, the machine's condition, and paired statistics.

statistics.py     paired log ratios with intervals, the A/A floor, verdicts
rounds.py         the order of measurements, and times.jsonl
machine.py        load of others, stolen time, settings of the processor
perf.py           instructions and cycles, where the machine counts them

Imports no other part of the project; run/ and analysis/ import it.
"""
