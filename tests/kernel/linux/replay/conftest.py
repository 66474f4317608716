"""What the tests of replay share."""

from tests.kernel.linux.replay.driver import replayed

__all__ = ["replayed"]
