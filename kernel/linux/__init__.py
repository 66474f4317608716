"""How the model is held against the Linux that runs: host, verify, replay, calibrate.

Imports the model, kernel.differential and kernel.engine; the model never imports it.
"""
