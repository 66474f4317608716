"""Differential testing: do the same on two sides, compare, and shorten what differs.

    subject.py    what a subject says of itself: its programs, its two sides, its words
    run.py        programs in worker processes, again where the host interfered, shrunk
    pool.py       processes that may die or hang, and where each of them is
    shrink.py     the shortest program that still shows a difference
    program.py    programs stored as JSON
    tally.py      counts that add up, and their tables
    reach.py      branches reached, missed and out of reach
    mutations.py  rules broken on purpose: each must be noticed
    command.py    the command line: options, exit codes, progress, what is printed

A new subject is a :class:`~kernel.differential.subject.Subject`, its
:class:`~kernel.differential.subject.Sides`, and a ``__main__`` that hands both to
:func:`kernel.differential.command.verify`.

Imports kernel.engine only; kernel.linux, allocators.verify and benchmarks.twin import it.
"""
