"""Real programs against the model: record their memory calls, replay them, compare every answer.

``python -m kernel.replay record -- COMMAND`` takes a recording (:mod:`kernel.replay.recorder`),
``python -m kernel.replay FILE`` replays it or a log of strace.  The way of a file:

    recording.py, strace.py   text -> a Log: calls, clones, execs and exits in time (log.py)
    spaces.py                 who shares memory with whom: one Space for each address space
    plan.py                   what the model must be asked for each call, or why it cannot be
    search.py                 an order of overlapping calls in which every answer fits
    areas.py                  the areas and sizes of a snapshot against the model's
    report.py                 what is printed
"""
