"""A simulated allocator held against the real one that it is the twin of.

    program ─► twin: compiled loop on the kernel model ─► what each operation should answer
       │                                                         │ addresses
       └─────► libc: one real process, prepared operations ◄─────┘
                        │
                        └─► compared: address, break, page faults after every operation;
                            areas and resident pages at the end

The twin goes first: what it predicts are the pointers that the real process is then asked to free.
So all of a program runs in one batch on each side, and the first difference ends it.  Where a
program has threads, each row says whose turn it is: on both sides one acts, the others sleep.

Imports replay/ and the storeys below; twin.predict imports its reasons for a skip.
"""
