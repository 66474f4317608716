"""Hold a plugin to the contract of allocators.base.contract and to its own promises.

    scenario      what is done                              what must hold (checks by name)
    reuse         one object born and freed repeatedly      nothing: tells if memory is reused
    life          every kind of phase, twice                null alignment usable_size mapping
                                                            overlap contents realloc calloc
                                                            check walk retention
    again         the life on another machine               determinism: addresses and counters
    as timed      the life, compiled as replays are timed   determinism: addresses
    rounds        one workload over and over                leak retention
    scarcity      all calls under tight limits              null (no negative answer) exhaustion
    huge          requests beyond any address space         huge request
    double free   blocks freed twice, where promised        double free: the process aborts
    wild free     frees of no block, where promised         wild free: the process aborts
    reset         all dropped at once, where defined        walk retention

Everywhere: ``compile``, ``exception``, ``signal`` (the process died: metadata outside the
allocator's mappings or misaligned, an abort without cause), ``lockup`` (an operation that does not
end), ``crash`` (of the real process; only the command can report that).  The heap is inspected
every thousandth operation, and when it is wrong the plan is done again up to the operation after
which it is: the one that is named.

Imports allocators.base and the kernel; nothing but its command and tests imports it.
"""

from allocators.verify.suite import OPERATIONS, SCENARIOS, Failure, Suite, variations, verify

__all__ = ["OPERATIONS", "SCENARIOS", "Failure", "Suite", "variations", "verify"]
