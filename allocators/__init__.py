"""The allocators, one file each, and the contract that they share (allocators.contract)."""
