"""Real allocators on real Linux, beside the model: the same workloads, the same files of results.

machine_code.py   the machine code of a process that holds nothing but the library and the replay
process.py        that process: batches of events in, addresses and changes of memory out
memory.py         what it tells, put into the model's own records by the model's own loop: metrics
timed.py          seconds of the compiled loop on the library, under pyperf
loop.py           the compiled loop beside the same loop in C

Imports speed/ and what is below it; run/ and twin/ import it.
"""
