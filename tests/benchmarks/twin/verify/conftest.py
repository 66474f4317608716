import pytest

from benchmarks.twin.verify.libc import unavailable, wrong_library

_REASON = unavailable() or wrong_library()
needs_glibc = pytest.mark.skipif(bool(_REASON), reason=_REASON or "usable")
