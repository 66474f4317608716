"""Measurement of the cost of kernel work on this machine: ``python -m kernel.linux.calibrate``.

The model counts kernel work and computes its cost as a sum (prices: conf/kernel/cost)::

    ns = Σ calls of a kind × price of the call
       + Σ faults by cause × price of that fault
       + frames freed × page_returned
       + huge pages freed whole × huge_page_returned
       + pages swapped out × swap_out

To avoid counting any work twice, a call is measured without pages to work on; its price includes
entry into the kernel (``syscall_floor``).  The price of a fault or of a freed page is the marginal
cost of one *more* page, which excludes the call and the page table around it.

Most frames are ones that the process has just freed, which are still in the processor's caches.  A
first touch of memory that has long been unused costs more, especially of a huge page.

:mod:`kernel.linux.calibrate.measures` defines and times the work, and
:mod:`kernel.linux.calibrate.prices` computes prices and writes the cost table.

This package imports kernel.linux.host; benchmarks.twin.predict imports its measures and prices.
"""
