"""The kernel memory model: the only operating system that the allocators see.

Read in this order: :mod:`kernel.types` (every record, field by field), :mod:`kernel.access`
(the hook that every simulated load and store passes), :mod:`kernel.page` (pages and slots),
:mod:`kernel.fault` (demand paging), :mod:`kernel.mmap`, :mod:`kernel.brk`, and :mod:`kernel.boot`
(how a kernel is made and reset).

The model imports kernel.engine; allocators/ and benchmarks/ import both, and kernel.linux too.
"""

from pathlib import Path

from kernel.engine.command import begin

#: Directory that holds the project's packages and conf/.
PROJECT = Path(__file__).resolve().parent.parent

begin()
