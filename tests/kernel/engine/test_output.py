"""Result files: complete or absent, in place of regular files only."""

import os
import socket
import stat
from pathlib import Path

import pytest

from kernel.engine import output
from kernel.engine.output import replacing, save, unwritable, write_text

pytestmark = [pytest.mark.once, pytest.mark.hardening(5)]


def contents(folder):
    return sorted(path.name for path in folder.iterdir())


def special(folder, kind):
    """Create a file of ``kind`` that no result may replace."""
    path = folder / "out.json"
    if kind == "directory":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "link to a device":
        path.symlink_to("/dev/null")
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "link into nowhere":
        path.symlink_to(folder / "nowhere" / "file")
    return path


@pytest.mark.parametrize(
    "kind",
    ["directory", "FIFO", "socket", "link to a device", "link to itself", "link into nowhere"],
)
def test_only_a_regular_file_is_replaced(tmp_path, kind):
    path = special(tmp_path, kind)
    before = path.lstat()
    assert unwritable(path)
    with pytest.raises(OSError, match=r"out\.json"):
        write_text(path, "x")
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert contents(tmp_path) == ["out.json"]


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full", "/dev/zero"])
def test_a_device_is_refused(device):
    assert unwritable(Path(device)) == "not a regular file, so it cannot be replaced"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere/x", "the directory nowhere does not exist"),
        ("file/x", "Not a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_an_impossible_name_is_refused(tmp_path, monkeypatch, path, reason):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert unwritable(Path(path)) == reason


def test_a_new_file_has_the_permissions_of_the_umask_and_an_old_one_keeps_its_own(tmp_path):
    path = tmp_path / "x"
    before = os.umask(0o027)
    try:
        assert unwritable(path) == ""
        write_text(path, "a")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        write_text(path, "b")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert path.read_text() == "b"
    assert contents(tmp_path) == ["x"]


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    file, link = tmp_path / "folder" / "file", tmp_path / "link"
    link.symlink_to(file)
    for text in ("created", "replaced"):
        write_text(link, text)
        assert file.read_text() == text
        assert link.is_symlink()
    assert contents(tmp_path / "folder") == ["file"]


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_failed_write_leaves_only_the_old_file(tmp_path, monkeypatch, failing):
    path = tmp_path / "x"
    write_text(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", full)
        assert unwritable(path) == "No space left on device"

    def write():
        with replacing(path) as new:
            new.write_text("n")
            if failing == "write":
                full()

    with pytest.raises(OSError, match="No space left on device") as caught:
        write()
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert contents(tmp_path) == ["x"]


def test_an_error_in_the_block_keeps_the_old_file(tmp_path):
    path = tmp_path / "x"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path):
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert contents(tmp_path) == ["x"]


def test_what_cannot_be_written_is_saved_in_a_new_temporary_file(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert save(tmp_path / "x", "text", "name") == (tmp_path / "x", "")
    first, reason = save(tmp_path, "text", "name")
    assert reason == f"{tmp_path}: is a directory"
    second, reason = save(None, "text", "name")
    assert reason == ""
    assert first != second
    assert {first.parent, second.parent} == {folder}
    assert first.read_text() == second.read_text() == "text"
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert save(None, "text", "name")[0] is None
    assert save(tmp_path, "text", "name") == (None, f"{tmp_path}: is a directory")


def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    """A writer beside the target picks another name if somebody has guessed its temporary one."""
    victim = tmp_path / "victim"
    victim.write_text("safe")
    monkeypatch.setattr(output.secrets, "token_hex", lambda n: "guessed")
    (tmp_path / ".x.guessed").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "x", "text")
    assert victim.read_text() == "safe"
