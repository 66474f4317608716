"""Names of file systems, and the only list of those that align mappings of their files."""

import re

import pytest

from kernel.linux.host import files
from tests.conftest import ROOT


@pytest.mark.parametrize(("path", "name"), [("/proc/self", "proc"), ("/sys", "sysfs")])
def test_names(path, name):
    assert files.file_system(path) == name


def test_what_is_not_there_has_no_name(tmp_path):
    assert files.file_system(str(tmp_path / "none")) == "?"


def test_what_may_answer_both_ways_is_in_no_list():
    # From fs/*/file.c of Linux 6.7 to 6.18: f2fs never names thp_get_unmapped_area; bcachefs,
    # erofs do in later versions only.
    assert sorted(files.ALIGNING) == ["btrfs", "ext4", "xfs"]
    assert not files.ALIGNING & files.NOT_ALIGNING
    assert (files.ALIGNING | files.NOT_ALIGNING).issubset(files._NAMES.values())


def test_the_list_stands_once():
    found = [
        str(path.relative_to(ROOT))
        for folder in ("kernel", "benchmarks", "allocators")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r'["\']xfs["\']', path.read_text())
    ]
    assert found == ["kernel/linux/host/files.py"]
