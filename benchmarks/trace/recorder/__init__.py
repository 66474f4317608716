"""Record what real programs allocate: a small preloaded library writes, this package reads.

    COMMAND + recorder.so ──► RAW/PID-N.buffers, .chunks ──► raw.Image ──► Parquet traces
             (build)                  one pair an image       (order)          (run)

``recorder.c`` describes the files that it leaves behind; they survive whatever ends the program.

Imports trace.formats and events/; trace.tools and trace.shipped import it.
"""
