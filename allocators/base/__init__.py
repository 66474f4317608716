"""Parts that allocators share: contract, settings, tags, mapped blocks, plugins, registry.

Imports the kernel and no allocator; allocators, allocators.verify and benchmarks import it.
"""
