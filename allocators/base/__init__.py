"""What allocators are made of: the contract, settings, tags, mapped blocks, and the registry.

Imports the kernel and no allocator; allocators, allocators.verify and benchmarks import it.
"""
