"""What the tests of replay share."""

from tests.replay.driver import replayed

__all__ = ["replayed"]
