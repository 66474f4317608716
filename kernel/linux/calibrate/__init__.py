"""What the work of the kernel costs on this machine: ``python -m kernel.linux.calibrate``.

The model counts work and prices it by adding up (conf/kernel/cost)::

    ns = Σ calls of a kind × price of the call
       + Σ faults by cause × price of that fault
       + frames given back × page_returned
       + huge pages given back whole × huge_page_returned
       + pages swapped out × swap_out

So that nothing is paid twice, a call is measured where it has no pages to work on, its entry into
the kernel (``syscall_floor``) included; a fault or a page given back is what one page *more* costs,
so that neither the call nor the page table around it is in its price.

Frames are mostly such as the process has just given back, still in the processor's caches: a first
touch of memory that nobody has used for long costs more, above all of a huge page.

:mod:`kernel.linux.calibrate.measures` says what is timed, :mod:`kernel.linux.calibrate.prices`
makes prices of it and writes them down.

Imports kernel.linux.host; twin.predict imports its measures and prices.
"""
