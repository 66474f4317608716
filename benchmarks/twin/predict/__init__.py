"""Prediction of glibc's memory and time from its twin, compared with measurements.

    programs    workloads on which the prices are fitted ──┐
    traces      workloads whose time is predicted ─────────┤
                                                           ▼
    measured    the real library: memory, and nanoseconds of each piece of a program
    steps       the twin: memory, and the number of steps of each kind in a piece
                  └── processor: model of caches and branch prediction
    prices      nanoseconds per step, fitted on the programs; steps × prices = the prediction
    report      both in a table and in validation.json, which analysis.fig_validate draws

Memory must agree to the page.  Time is predicted from counts alone; the run time of the twin itself
is not used.

Imports twin.verify and the layers below; only its command and its tests import it.
"""
