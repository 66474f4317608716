"""Real programs against the model: record their memory calls, replay them, compare every answer.

    python -m kernel.linux.replay record -o FILE -- COMMAND…     run COMMAND, write its memory calls
    python -m kernel.linux.replay FILE [--maps FILE] [--json]    replay a recording or a log of
    strace python -m kernel.linux.replay trial [NAME…]                  both for the real programs
    of trial.py

Compared are each returned address and errno; at each program's exec and end the list of areas,
VmSize, VmData and VmLck.  The last line counts: calls, compared, differ, not comparable.  Exit code
1 when anything differs.  A recording has what the answers depend on: the areas at exec, limits,
files and their systems, the machine's settings.  A log of strace has not, therefore

- ``--maps`` gives the areas at its (first) exec, or the first mapping left to the kernel and the
  first answer of brk are taken as given (origin.py);
- memory that was refused where the model would grant it is not comparable;
- areas at the end are not compared.

What neither tells, and how it is allowed for, says areas.py (growth of the stack, areas that
only their touched pages keep apart, page tables), spaces.py (threads, forks, execs), search.py
(calls that overlap in time) and plan.py (calls that are not modelled).  The way of a file:

    recording.py, strace.py   text -> a Log: calls, clones, execs and exits in time (log.py)
    spaces.py                 who shares memory with whom: one Space for each address space
    origin.py                 the state in which a space begins
    plan.py                   what the model must be asked for each call, or why it cannot be
    search.py                 an order of overlapping calls in which every answer fits
    areas.py                  the areas and sizes of a snapshot against the model's
    report.py                 what is printed

Imports the model; nothing but its command and tests imports it.
"""
