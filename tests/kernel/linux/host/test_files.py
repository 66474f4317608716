"""Names of file systems, and the single list of those that align mappings of their files."""

import re

import pytest

from kernel.linux.host import files
from tests.conftest import ROOT


@pytest.mark.parametrize(("path", "name"), [("/proc/self", "proc"), ("/sys", "sysfs")])
def test_names(path, name):
    assert files.file_system(path) == name


def test_an_absent_file_has_no_file_system(tmp_path):
    assert files.file_system(str(tmp_path / "none")) == "?"


def test_file_systems_that_depend_on_the_version_are_in_no_list():
    # From fs/*/file.c of Linux 6.7 to 6.18: f2fs never refers to thp_get_unmapped_area; bcachefs
    # and erofs do so only in later versions.
    assert sorted(files.ALIGNING) == ["btrfs", "ext4", "xfs"]
    assert not files.ALIGNING & files.NOT_ALIGNING
    assert (files.ALIGNING | files.NOT_ALIGNING).issubset(files._NAMES.values())


def test_no_other_file_lists_file_systems():
    found = [
        str(path.relative_to(ROOT))
        for folder in ("kernel", "benchmarks", "allocators")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r'["\']xfs["\']', path.read_text())
    ]
    assert found == ["kernel/linux/host/files.py"]
