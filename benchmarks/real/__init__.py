"""Real allocators on real Linux: the same workloads and result files as for simulated ones.

machine_code.py   machine code of a process that contains only the library and the replay
process.py        that process: batches of events in, addresses and changes of memory out
threads.py        the same process with one real thread for each thread of the trace
memory.py         metrics of that process, computed by the model's replay loop in its records
timed.py          time of the compiled loop on the library, under pyperf
atomic.py         atomic loads and stores for compiled code
loop.py           comparison of the compiled loop with the same loop in C

Imports replay/ and the layers below it; run/ and twin/ import it.
"""
