"""Foreign files are read without surprises, and quoted on one line."""

import os
import socket

import pytest

from kernel.engine.foreign import WIDTH, check_regular, parse_json, printable, quoted

pytestmark = pytest.mark.hardening(16)


def test_messages_show_no_control_characters():
    assert printable("plain, é, …") == "plain, é, …"
    assert printable("a\x1b[2Jb\nc\u202e\udc80") == "a\\x1b[2Jb\\nc\\u202e\\udc80"
    assert printable("x" * 100, 10) == "xxxxxxxxx…"
    assert len(printable("\x1b" * 100, 10)) == 10


@pytest.mark.parametrize(
    "value", ["x" * 10**6, ["x" * 1000] * 1000, {"a" * 500: [[[[[[[[1]]]]]]]]}, 10**4000, "\0" * 99]
)
def test_a_quotation_is_shorter_than_a_line(value):
    shown = quoted(value)
    assert len(shown) <= WIDTH
    assert shown.isprintable()
    assert quoted("short") == "'short'"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ("[-Infinity]", "-Infinity is not a JSON number"),
        ("", "Expecting value"),
    ],
)
def test_json_that_is_none(text, said):
    with pytest.raises(ValueError, match=said):
        parse_json(text)
    assert parse_json('{"a": [1, null]}') == {"a": [1, None]}


def test_only_regular_files_are_read(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    check_regular(tmp_path / "file")
    for name, said in (
        ("loop", "symbolic links"),
        ("pipe", "is a pipe; expected a regular file"),
        ("socket", "is a socket"),
        ("../../../../../../../dev/zero", "is a device"),
        (".", "Is a directory"),
        ("none", "No such file"),
    ):
        with pytest.raises(OSError, match=said):
            check_regular(tmp_path / name)
    server.close()
