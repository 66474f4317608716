"""Helpers and fixtures for tests of real libraries."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from allocators.base.library import Library, LibraryError, find
from kernel.linux.host import unavailable


def library(name: str, **settings: object) -> Library:
    """Find a real library; skip the test if it is missing or no process can be created."""
    if reason := unavailable():
        pytest.skip(reason)
    try:
        return find(name, settings)
    except LibraryError as error:
        if "not installed" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture
def glibc() -> Library:
    """The C library of this machine."""
    return library("native/glibc")


@pytest.fixture
def built(tmp_path: Path) -> Callable[[str], Path]:
    """Function that compiles C into a shared library; the test is skipped without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")

    def build(text: str) -> Path:
        source, target = tmp_path / "it.c", tmp_path / "libit.so"
        source.write_text(text)
        command = [compiler, "-O1", "-shared", "-fPIC", "-fno-builtin", "-o", target, source]
        subprocess.run(command, check=True, capture_output=True)
        return target

    return build
