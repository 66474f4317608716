"""Real programs on the model: record their memory system calls, replay them, compare results.

    python -m kernel.linux.replay record -o FILE -- COMMAND…     run COMMAND, record its calls
    python -m kernel.linux.replay FILE [--maps FILE] [--json]    replay a recording or an strace log
    python -m kernel.linux.replay trial [NAME…]                  record and replay the real programs
                                                                 of trial.py

A replay compares every returned address and errno and, at each program's exec and end, the list of
areas (VMAs), VmSize, VmData and VmLck.  The last line counts the calls: total, compared, different,
not comparable.  The exit code is 1 if anything differs.

A recording contains everything that the results depend on: the areas at exec, resource limits,
files and their file systems, and the machine's settings.  An strace log does not.  Therefore, for
an strace log,

- ``--maps`` supplies the areas at its first exec.  Without it, the first mapping that the kernel
  placed and the first result of brk are taken as given (origin.py);
- a call that Linux refused for lack of memory but the model grants is not comparable;
- the areas at the end are not compared.

Some facts are in neither kind of file.  The modules say how they allow for them: areas.py (growth
of the stack, areas that only their touched pages keep separate, page tables), spaces.py (threads,
forks, execs), search.py (calls that overlap in time) and plan.py (calls that are not modelled).

A file passes through the modules in this order:

    recording.py, strace.py   parse the text into a Log: calls, clones, execs and exits (log.py)
    spaces.py                 find out who shares memory with whom: one Space per address space
    origin.py                 build the state in which a space begins
    plan.py                   turn each call into calls of the model, or say why that is impossible
    search.py                 find an order of overlapping calls in which every result agrees
    areas.py                  compare the areas and sizes of a snapshot with the model's
    report.py                 print the result

The package imports the model; only its own command and tests import the package.
"""
