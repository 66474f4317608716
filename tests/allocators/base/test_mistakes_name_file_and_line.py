"""A mistake in a plugin is one line with the plugin's own file and line."""

import re

import pytest

from allocators.base.faults import compile_error, one_line
from allocators.base.registry import PluginError, PluginFault, load
from allocators.verify.__main__ import main

pytestmark = pytest.mark.hardening(7)

MALLOC = "    p = a.top + 16\n"
STATE = 'STATE = np.dtype([("top", "i8"), ("spare", "i8")])'
OVERLAPPING = (
    'STATE = np.dtype({"names": ["top", "spare"], "formats": ["i8", "i8"], "offsets": [0, 4]})'
)


def fault(path):
    with pytest.raises(PluginFault) as caught:
        load(path).inspect()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("q = (lambda x: x)(p)", "malloc() defines a function"),
        ("class C: pass", "malloc() defines a class"),
        ("try: p += 1\n    except Exception: pass", "malloc() has a try statement"),
        ("with k as q: pass", "malloc() has a with statement"),
        ("yield p", "malloc() is or has a generator"),
        ("import math", "malloc() imports a module"),
        ("q = '%d' % p", "malloc() uses a string"),
        ("q = '{}'.format(p)", "malloc() uses a string"),
        ("print(p, end='')", "malloc() calls print() with end"),
        ("q = str(p)", "malloc() uses str, which cannot be compiled"),
        ("open(p)", "malloc() uses open, which cannot be compiled"),
        ("q = np.random.randint(2)", "malloc() uses np.random: results must be reproducible"),
        ("q = OBJECT.x", "malloc() uses OBJECT (Thing): compiled code uses"),
        ("q = BIG[0]", "malloc() reads the array BIG of 33554432 bytes"),
        ("q = hash(p)", "malloc() calls hash, which is a global int"),
        ("q = k.nosuch", "malloc() uses k.nosuch: it has mm, task"),
        ("k.mm.nosuch = 1", "malloc() uses k.mm.nosuch: it has task_size"),
        ("mapped_free(k, a, p)", "malloc() calls mapped_free(), which uses a.mapped: it has top"),
        ("return float(p)", "malloc() returns a float: it must return a whole number"),
        ("return None", "malloc() returns None"),
        ("return a", "malloc() returns a:"),
        ("return p, size", "malloc() returns several values"),
    ],
)
def test_in_a_compiled_function(files, code, message):
    text = files.tiny.replace(
        STATE,
        STATE
        + "\n\n\nclass Thing:\n    x = 1\n\n\nOBJECT = Thing()\nhash = 3\n"
        + "BIG = np.zeros(1 << 22, 'i8')\nBIG.flags.writeable = False\n"
        + "from allocators.base.mapped import mapped_free\n",
    )
    path = files.write("mine", text.replace(MALLOC, MALLOC + f"    {code}\n"))
    line = text[: text.index(MALLOC)].count("\n") + 2
    found = re.match(rf"{path}:(\d+): ", fault(path))
    assert int(found[1]) in (line, line + 1)
    assert message in fault(path)


def test_a_long_chain_of_calls(files):
    chain = "".join(f"@jit\ndef f{i}(x):\n    return f{i + 1}(x)\n\n\n" for i in range(300))
    chain += "@jit\ndef f300(x):\n    return x\n\n\n"
    text = files.tiny.replace("@jit\ndef init", chain + "@jit\ndef init", 1)
    path = files.write("mine", text.replace(MALLOC, "    p = f0(a.top + 16)\n"))
    assert "is called through more than 100 functions" in fault(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (STATE, "STATE = 5", ":9: STATE must be a np.dtype of named fields"),
        (STATE, "STATE = np.dtype('i8')", ":9: STATE must be a np.dtype"),
        (STATE, STATE.replace('"i8")])', '"O")])'), ":9: STATE.spare is of type object"),
        (STATE, STATE.replace('"i8")])', '"f2")])'), ":9: STATE.spare is of type float16"),
        (STATE, STATE.replace('"i8")])', '">i8")])'), ":9: STATE.spare is of type >i8"),
        (STATE, STATE.replace('"i8")])', '"q9")])'), ":9: TypeError: data type 'q9'"),
        (STATE, OVERLAPPING, ":9: STATE.spare overlaps another field"),
        (STATE, STATE + "\nCHECKS = [1]", ":10: CHECKS must be a dict"),
        (STATE, STATE + "\npromises = 5", ":10: promises must be a function"),
        (STATE, STATE + "\nmalloc_ = 5\nimport os\nos._exit(0)", ":12: SystemExit: 0"),
        (STATE, STATE + "\nclass Quit(BaseException): pass\nraise Quit", ":11: Quit"),
        (STATE, STATE + "\ndef f(n): return f(n + 1)\nf(0)", ":10: RecursionError"),
        (STATE, STATE + "\nraise ValueError('\\x1b[31m' * 9999)", ":10: ValueError: [31m"),
        (STATE, STATE + "\ndef promises(s): raise KeyError('x')", ":10: KeyError: 'x'"),
        (STATE, STATE + "\ndef promises(s): return 3", ":10: promises() returns 3"),
        (STATE, STATE + "\ndef promises(): return 3", ":10: TypeError: promises() takes 0"),
        (STATE, STATE + "\ndef check_settings(): pass", ":10: TypeError: check_settings()"),
        (STATE, STATE + "\ndef check_settings(s): import os; os._exit(0)", ":10: SystemExit: 0"),
        ("def malloc(k, a, size):", "def malloc(k, a, size, more):", ":19: malloc() has the param"),
        (MALLOC, "\tp = a.top + 16\n", ":25: TabError"),
        ("def free(k, a, p):", "def free(k, a, p, *, q):", ":31: free() has the parameters"),
        ("def free(", "async def free(", ":31: free() is a coroutine"),
        ("@jit\ndef free(", "class free: pass\n\n@jit\ndef free_(", ":31: free must be a function"),
    ],
)
def test_outside_compiled_functions(files, old, new, message):
    path = files.write("mine", files.tiny.replace(old, new))
    assert f"{path}{message}" in fault(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not define STATE, init, malloc, free, usable_size"),
        (b'"""Only a docstring."""\n', "does not define STATE"),
        (b"X = '\xe9'\n", "SyntaxError: (unicode error)"),
        (b"X = '\0'\n", "null bytes"),
    ],
)
def test_files_that_are_no_plugins(files, content, message):
    path = files.folder / "mine.py"
    path.write_bytes(content)
    assert f"{path}" in fault(str(path))
    assert message in fault(str(path))


@pytest.mark.parametrize(
    ("head", "encoding"), [("", "utf-8-sig"), ("# -*- coding: latin-1 -*-\n# \xf6\n", "latin-1")]
)
def test_the_walk_reads_a_file_as_python_decodes_it(files, head, encoding):
    path = files.folder / "mine.py"
    path.write_bytes((head + files.tiny.replace("    return p\n", "    return\n")).encode(encoding))
    assert "malloc() returns nothing here, but a value in line" in fault(str(path))


def test_a_directory_is_no_plugin(files):
    (files.folder / "x.py").mkdir()
    with pytest.raises(PluginError, match=r"x\.py: it is a directory"):
        load(str(files.folder / "x.py"))


def test_the_exception_of_a_message_of_its_own():
    class Mute(Exception):
        def __str__(self):
            raise ValueError

    assert one_line(Mute()) == "Mute"


def test_an_error_of_the_compiler_is_one_line_with_the_plugins_place(files):
    numba = pytest.importorskip("numba.core.errors")
    path = files.write("mine", "")
    text = f"""Failed in nopython mode pipeline (step: nopython frontend)
No implementation of function Function(<built-in function add>) found for signature:

 >>> add({"Record(" + "x" * 9000 + ")"}, int64)

During: typing of call at {path} (7)
File "kernel/engine/jit.py", line 3:
"""
    message = compile_error(numba.TypingError(text), path)
    assert message.startswith(f"{path}:7: it does not compile: No implementation of function add(")
    assert len(message) < len(path) + 400
    assert compile_error(KeyError("x"), path) == f"{path}: it does not compile: KeyError: 'x'"


def test_verify_exits_with_1_for_a_mistake_in_a_plugin(files, capsys):
    path = files.write("mine", files.tiny.replace(MALLOC, "    p = nosuchname\n"))
    assert main([path]) == 1
    assert f"allocators.verify: {path}:25: malloc() uses nosuchname" in capsys.readouterr().err


@pytest.mark.hardening(6)
def test_a_loop_at_import_is_ended(files, monkeypatch):
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    monkeypatch.setattr("kernel.engine.watchdog.PATIENCE", 0.3)
    loop = "import time\nend = time.monotonic() + 2\nwhile time.monotonic() < end:\n    pass\n"
    message = fault(files.write("mine", loop))
    assert re.search(r"mine\.py:[34]: the import has not ended after 0\.3 s: it loops", message)


@pytest.mark.hardening(8)
def test_labels_of_two_files_of_one_stem_differ(files):
    (files.folder / "b").mkdir()
    first = load(files.write("mine", files.tiny)).label
    second = load(files.write("b/mine", files.tiny + "\n")).label
    assert first != second
    assert re.fullmatch("mine@[0-9a-f]{6}", first)
    assert load("bump").label == "bump"
