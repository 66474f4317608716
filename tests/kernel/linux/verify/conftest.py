import pytest

from kernel.linux import host

needs_host = pytest.mark.skipif(bool(host.unavailable()), reason=host.unavailable() or "usable")
