"""Differential testing of a simulated allocator against the real one that it models.

    program ─► twin: compiled loop on the kernel model ─► expected result of each operation
       │                                                         │ addresses
       └─────► libc: one real process, prepared operations ◄─────┘
                        │
                        └─► compared: address, break, page faults after every operation;
                            mappings and resident pages at the end

The twin runs first: the addresses that it predicts are those that the real process then frees.  A
program thus runs as one batch on each side, and the first difference ends it.  In a program with
threads, each row names the thread that acts; on both sides the other threads sleep.

Imports replay/ and the layers below; twin.predict uses its checks of the host.
"""
