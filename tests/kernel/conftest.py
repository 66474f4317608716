"""What the kernel's tests share."""

import pytest

from tests.kernel.driver import Process, configured


@pytest.fixture
def process(request):
    """A fresh process; its page size in bytes by indirect parameter."""
    return Process(configured(page_size=getattr(request, "param", 4096)))
