"""How the model is held against the Linux that runs: host, verify, replay, calibrate.

Imports the model and the engine; the model never imports it.
"""
