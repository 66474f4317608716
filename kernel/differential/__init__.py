"""Differential testing: run one program on two implementations and shrink any counterexample.

    subject.py    interface of a test subject: its programs, its two sides, its texts
    run.py        runs programs in worker processes, reruns disturbed ones, shrinks mismatches
    pool.py       worker processes that may die or hang, and the progress of each
    shrink.py     search for the shortest program that still shows a difference
    program.py    programs stored as JSON
    tally.py      counts that can be added, and their tables
    reach.py      branch coverage: reached, missed and unreachable branches
    mutations.py  mutation testing: rules broken on purpose, each of which must be detected
    command.py    command line: options, exit codes, progress and printed results

To add a subject, write a :class:`~kernel.differential.subject.Subject`, its
:class:`~kernel.differential.subject.Sides`, and a ``__main__`` that passes the subject to
:func:`kernel.differential.command.verify`.

This package imports only kernel.engine; kernel.linux, allocators.verify and benchmarks.twin
import it.
"""
