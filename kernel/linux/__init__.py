"""Validation of the model against the running Linux.

host/       runs operations in a real process and observes it
verify/     random differential testing of the model
replay/     replays recorded system calls of real programs
calibrate/  measures the costs of kernel operations
scope.py    rules that can be verified on this host
state.py    state of a process in the form that both sides share

This package imports the model, kernel.differential and kernel.engine; the model never imports it.
"""
