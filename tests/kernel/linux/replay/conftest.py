"""Fixtures of the replay tests."""

from tests.kernel.linux.replay.driver import replayed

__all__ = ["replayed"]
