"""Cache of compiled code: private, or else temporary; damage and full disks are mended."""

import errno
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from kernel.engine import cache
from kernel.engine.cache import cache_root
from kernel.engine.jit import build, disabled, jit
from tests.conftest import ROOT

pytestmark = pytest.mark.hardening(9)
compiled_only = pytest.mark.skipif(disabled(), reason="nothing is compiled with the JIT off")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Forget which directories were used and what was said; restore NUMBA_CACHE_DIR."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", os.environ.get("NUMBA_CACHE_DIR", ""))
    monkeypatch.delenv(cache.SHARED, raising=False)
    cache._usable.cache_clear()
    cache.warn.cache_clear()
    yield
    cache._usable.cache_clear()


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "named"))
    assert cache_root() == tmp_path / "named"
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "malloc-bench" / "numba"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "home" / ".cache" / "malloc-bench" / "numba"
    assert cache_root().stat().st_mode & 0o777 == 0o700


def replaced(monkeypatch, root, capsys):
    """Return the warning that goes with a temporary directory instead of ``root``."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(root))
    used = cache_root()
    assert used != root
    assert used.is_dir()
    assert os.environ["NUMBA_CACHE_DIR"] == str(used)  # child processes use it, too
    error = capsys.readouterr().err
    assert error.startswith(f"warning: compile cache {root}: ")
    assert error.count("\n") == 1
    cache._remove(str(used), os.getpid())
    return error


def test_a_directory_that_cannot_be_made(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot be written (Not a dir" in replaced(monkeypatch, tmp_path / "file" / "x", capsys)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_directory_to_which_others_may_write(monkeypatch, tmp_path, capsys, mode):
    root = tmp_path / "open"
    root.mkdir()
    root.chmod(mode)
    assert "others may write to it" in replaced(monkeypatch, root, capsys)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(root))
    monkeypatch.setenv(cache.SHARED, "1")
    assert cache_root() == root


def test_a_directory_of_another_user(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert "belongs to another user" in replaced(monkeypatch, tmp_path / "theirs", capsys)


def test_a_temporary_cache_is_removed_at_the_end(tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", "from kernel.engine.cache import *; print(cache_root())"],
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "file" / "x")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "malloc-bench-cache-" in done.stdout
    assert not Path(done.stdout.strip()).exists()


# --- Damage ---------------------------------------------------------------------------------------


@jit
def triple(n):
    return 3 * n


def hits():
    """Build and call the function; return True if its code came from the cache."""
    built = build(triple)
    assert built(7) == 21
    return bool(built.stats.cache_hits)


@compiled_only
@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize(
    "damage",
    [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: bytes(len(b)), lambda b: b"\x80x" * 99],
    ids=["empty", "truncated", "zeroed", "garbage"],
)
def test_a_damaged_file_is_named_and_made_anew(monkeypatch, tmp_path, capsys, suffix, damage):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert not hits()
    assert hits()
    assert not capsys.readouterr().err
    [file] = tmp_path.rglob(f"*{suffix}")
    file.write_bytes(damage(file.read_bytes()))
    assert not hits()
    error = capsys.readouterr().err
    assert error.startswith(f"warning: compile cache {file.parent}")
    assert "is damaged" in error
    assert hits()


@compiled_only
def test_a_flipped_bit_in_machine_code_is_noticed(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    hits()
    [file] = tmp_path.rglob("*.nbc")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert not hits()
    assert "wrong checksum" in capsys.readouterr().err


@compiled_only
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_is_said_and_the_code_still_runs(monkeypatch, tmp_path, capsys, code):
    from kernel.engine import link

    @contextmanager
    def full(self, path):
        raise OSError(code, os.strerror(code))
        yield

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(link._CacheFile, "_open_for_write", full)
    assert not hits()
    assert f"it cannot be written ({os.strerror(code)})" in capsys.readouterr().err
