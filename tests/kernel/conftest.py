"""Fixtures shared by the kernel's tests."""

import pytest

from tests.kernel.driver import Process, configured


@pytest.fixture
def process(request):
    """Return a newly booted process; an indirect parameter sets its page size, bytes."""
    return Process(configured(page_size=getattr(request, "param", 4096)))
