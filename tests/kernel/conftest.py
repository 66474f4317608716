"""What the kernel's tests share."""

import pytest

from kernel.boot import KernelConfig
from tests.kernel.driver import Process


@pytest.fixture
def process(request):
    """A fresh process; its page size in bytes by indirect parameter."""
    return Process(KernelConfig(page_size=getattr(request, "param", 4096)))
