"""Hold the model against the Linux that runs: ``python -m kernel.linux.verify``.

program.py   random operations, aimed at what the model says is there
model.py     the model's side: do an operation, tell the state in the host's form
directed.py  programs written by hand for rules that random ones seldom meet
compare.py   both sides, one operation at a time; the first difference ends a program
shrink.py    the shortest program that still shows it
run.py       many programs, one process each, and what was counted on the way

Imports the model and kernel.linux.host; nothing but its commands and tests imports it.
"""
