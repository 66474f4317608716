"""Simulated allocators: one per module, configured by ``conf/allocator/NAME.yaml``.

An allocator imports allocators.base (the contract) and the kernel model, never another allocator.
"""

from kernel.engine.command import begin

begin()
