"""Hold the model against the Linux that runs: ``python -m kernel.linux.verify``.

generator.py random operations, aimed at what the model says is there
directed.py  programs written by hand for rules that random ones seldom meet
model.py     the model's side: do an operation, tell the state in the host's form
compare.py   both sides, one operation at a time; the first difference ends a program
sides.py     both under whole programs, and what is counted on the way
subject.py   what kernel.differential, the engine, must know of all this

Imports the model, kernel.differential and kernel.linux; nothing but its commands and tests imports
it.
"""
