"""Differential testing of the model against the running Linux: ``python -m kernel.linux.verify``.

generator.py random operations, aimed at the mappings that the model has
directed.py  handwritten programs for rules that random ones seldom exercise
operation.py operations as numbers, text and JSON, and their simpler variants
model.py     the model's side: executes an operation, returns the state in the host's form
compare.py   both sides, one operation at a time, up to the first difference
sides.py     both sides under whole programs, with counts
subject.py   the implementation of kernel.differential's subject
reach.py     branches of the model that no program can reach
mutations.py rules broken on purpose, each of which must be detected

This package imports the model, kernel.differential and kernel.linux; only its commands and tests
import it.
"""
