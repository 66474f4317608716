"""Does the model predict reality?  Traces on real glibc and on its twin, side by side.

    programs    what prices are fitted on ──┐
    traces      what is predicted ──────────┤
                                            ▼
    measured    the real library: memory, and nanoseconds of each piece of a program
    steps       the twin: memory, and how many steps of each kind a piece takes
                  └── processor: what caches and branch prediction make of them
    prices      nanoseconds a step, fitted on the programs; steps × prices = the prediction
    report      both in a table and in validation.json, which analysis.fig_validate draws

Memory must be the same to the last page.  Time is predicted from counts alone; how long the twin
itself takes to run does not enter.

Imports twin.verify and the storeys below; nothing but its command and tests imports it.
"""
