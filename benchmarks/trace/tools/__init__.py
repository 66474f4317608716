"""``python -m benchmarks.trace COMMAND``: inspect and transform traces, one module per command.

A command has HELP, ``add_arguments(parser)``, and ``run(given, progress)``, which does the work and
returns a function that prints the result.  Its HINT, if any, is appended to the error for unknown
arguments.  To add a command, enter it in :data:`benchmarks.trace.__main__.COMMANDS`.

Imports all of trace/; only ``benchmarks.trace.__main__`` and tests import it.
"""
