"""``python -m benchmarks.trace COMMAND``: look at traces and work on them, a file for each command.

A command has HELP, ``add_arguments(parser)``, and ``run(given, progress)``, which does the work and
returns what prints the answer; its HINT, if any, is told where arguments are not understood.  To
add one, enter it in :data:`benchmarks.trace.__main__.COMMANDS`.

Imports all of trace/; only ``benchmarks.trace.__main__`` and tests import it.
"""
