"""Recorder of the allocations of real programs: a preloaded library writes, this package reads.

    COMMAND + recorder.so ──► RAW/PID-N.buffers, .chunks ──► raw.Image ──► Parquet traces
             (build)             one pair per image           (order)          (run)

``recorder.c`` describes its files; they survive however the program ends, including SIGKILL.

Imports trace.formats and events/; trace.tools and trace.shipped import it.
"""
