"""Verification of a plugin against the contract (allocators.base.contract) and its own promises.

    scenario      operations                                checks, by name
    reuse         one object allocated and freed over       none: finds out if memory is reused
                  and over
    life          every phase of a plan, twice              null alignment usable_size mapping
                                                            overlap contents realloc calloc
                                                            check walk retention
    again         the same plan on another machine          determinism: addresses and counters
    as timed      the same, compiled as for timed replays   determinism: addresses
    rounds        one workload over and over                leak retention
    scarcity      all calls under tight limits              null (no negative answer) exhaustion
    huge          requests beyond any address space         huge request
    double free   blocks freed twice, where promised        double free: the process aborts
    wild free     frees of non-blocks, where promised       wild free: the process aborts
    reset         all objects dropped, where defined        walk retention

In every scenario: ``compile``, ``exception``, ``signal`` (the process died: misaligned metadata or
metadata outside the allocator's mappings, an abort without cause), ``lockup`` (an operation that
does not end), ``crash`` (of the real process; only the command can report that).  The heap is
inspected every thousandth operation; if it is wrong, bisection over replays of the plan finds the
operation that broke it, and the failure names that one.

Imports allocators.base and the kernel; only its command and tests import it.
"""

from allocators.verify.suite import OPERATIONS, SCENARIOS, Failure, Suite, variations, verify

__all__ = ["OPERATIONS", "SCENARIOS", "Failure", "Suite", "variations", "verify"]
