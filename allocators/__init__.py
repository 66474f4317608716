"""The allocators: every module here is one, with ``conf/allocator/NAME.yaml`` beside it.

An allocator imports allocators.base (the contract) and the kernel model, never another allocator.
"""
