"""The frame of all commands: numbers, one-line errors, interrupts and output streams."""

import argparse
import ast
import os
import signal
import subprocess
import sys

import pytest

from kernel.engine.command import (
    MOST,
    OneLineParser,
    jobs,
    positive,
    quoted,
    seconds,
    seed,
    timeout,
    whole,
)
from tests.conftest import ROOT

pytestmark = [pytest.mark.once, pytest.mark.hardening(17)]

PACKAGES = ("kernel", "allocators", "benchmarks", "analysis")
#: Programs with a frame of their own: bench.py has Hydra's, and starts the others.
OTHERS = {"benchmarks/run/worker.py", "benchmarks/run/observe.py", "benchmarks/run/clean.py"}


def start(body, arguments="", shell=False, **how):
    """Start a command whose ``main`` has the lines ``body``."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    text = (
        f"import os, signal, sys, time\nfrom kernel.engine.command import run\ndef main():\n{lines}"
    )
    text += "sys.exit(run('a.command', main))"
    command = [sys.executable, "-c", text]
    if shell:
        command = ["sh", "-c", f'"$@" {arguments}', "sh", *command]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    return subprocess.Popen(command, cwd=ROOT, text=True, **streams)


def end(process):
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def outcome(body, arguments="", **how):
    return end(start(body, arguments, shell=bool(arguments), **how))


@pytest.mark.parametrize("code", [0, 1, 77])
def test_the_exit_code_is_that_of_main(code):
    assert outcome(f"print('x')\nreturn {code}") == (code, "x\n", "")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupt_is_one_line_and_130(name):
    process = start("print('ready', flush=True)\ntime.sleep(30)")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, name))
    assert end(process) == (130, "", "a.command: interrupted\n")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupt_of_an_import_is_one_line_and_130(tmp_path, name):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("from kernel.engine.command import begin\nbegin()\n")
    (package / "__main__.py").write_text("import package.slow\n")
    lines = "try:\n    os.kill(os.getpid(), signal.{})\n    time.sleep(30)\n"
    lines += "except BaseException:\n    raise ImportError('bad install') from None\n"
    (package / "slow.py").write_text(f"import os, signal, time\n{lines.format(name)}")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "package"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "package: interrupted\n")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_prepares_for_interrupts_before_other_imports(package):
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    assert "begin()" in [ast.unparse(node) for node in tree.body]


def test_nohup_is_respected():
    body = "os.kill(os.getpid(), signal.SIGHUP)\nprint('x')\nreturn 0"
    ignored = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    assert outcome(body, preexec_fn=ignored) == (0, "x\n", "")


@pytest.mark.hardening(4)
@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize(
    ("redirection", "reason"),
    [
        (">/dev/full", "standard output: No space left on device"),
        (">&-", "standard output is closed"),
    ],
)
def test_output_that_cannot_be_written_is_a_failure(redirection, reason, flush):
    body = f"print('x' * 10, flush={flush})\nreturn 0"
    assert outcome(body, redirection) == (1, "", f"a.command: {reason}\n")


@pytest.mark.hardening(4)
@pytest.mark.parametrize("printer", ["print", "from rich.console import Console; Console().print"])
def test_a_reader_that_goes_away_is_a_failure(printer):
    read, write = os.pipe()
    *imports, name = printer.split("; ")
    body = "\n".join([*imports, f"for i in range(9999): {name}('x' * 99)", "return 0"])
    process = start(body, stdout=write)
    os.close(write)
    os.close(read)
    assert end(process) == (1, None, "a.command: standard output: Broken pipe\n")


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_a_file_never_gets_the_number_of_a_closed_stream(closed):
    body = "print(os.open(os.devnull, os.O_RDONLY) > 2)\nprint('lost', file=sys.stderr)\nreturn 0"
    assert outcome(body, closed) == (0, "True\n", "" if "2" in closed else "lost\n")


def test_text_that_the_encoding_lacks_is_replaced():
    environment = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    assert outcome("print('1–2 \\udcff')\nreturn 0", env=environment) == (0, "1?2 ?\n", "")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("open('nowhere/x')", "nowhere/x: No such file or directory"),
        ("raise OSError(11, 'Resource temporarily unavailable')", "Resource temporarily unavail"),
        ("raise MemoryError", "out of memory"),
        ("raise MemoryError('Unable to allocate 7 TiB')", "out of memory: Unable to allocate 7"),
    ],
)
def test_errors_of_the_system_are_one_line(body, message):
    code, out, err = outcome(body)
    assert (code, out) == (1, "")
    assert err.startswith(f"a.command: {message}")
    assert len(err.splitlines()) == 1


@pytest.mark.hardening(4)
@pytest.mark.parametrize("code", ["", "0", "1", "'why'"])
def test_a_plugin_that_exits_does_not_end_the_command_in_silence(tmp_path, code):
    plugin = tmp_path / "plugin.py"
    plugin.write_text(f"import sys\n\nsys.exit({code})\n")
    found, out, err = outcome(f"import runpy\nrunpy.run_path({str(plugin)!r})\nreturn 0")
    assert (found, out) == (1, "")
    assert err == f"a.command: {plugin}:3: sys.exit({code}) ends the command; remove the call\n"


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parse", "good", "bad"),
    [
        (positive, ["1", "1_000", "1,000", str(MOST)], ["0", "-1", str(MOST + 1), "1e3", "", "٣"]),
        (jobs, ["1", "1024"], ["0", "-2", "1025", "9" * 5000]),
        (seed, ["0", "-5", str(2**63 - 1)], [str(2**63), "1.5", "x"]),
        (seconds, ["0", "0.5", "60"], ["-1", "nan", "inf", "1e300", "x", ""]),
        (timeout, ["0.5"], ["0", "-0.0", "nan", "-1"]),
        (whole(3, 5), ["3", "5"], ["2", "6"]),
    ],
)
def test_numbers_have_a_range(parse, good, bad):
    for text in good:
        parse(text)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError) as refused:
            parse(text)
        assert str(refused.value).startswith("must be ")
        assert len(str(refused.value)) < 200


def test_a_quotation_is_short_and_without_control_characters():
    assert quoted("x\x1b[31m\n") == r"'x\x1b[31m\n'"
    assert len(quoted("x" * 10_000)) < 70


@pytest.mark.parametrize("arguments", [["--x"], ["-n", "0"], ["a\nb\x1b"], ["y" * 9999]])
def test_a_wrong_command_line_is_one_line(arguments, capsys):
    parser = OneLineParser(prog="python -m a.command")
    parser.add_argument("-n", type=positive)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("a.command: ")
    assert line.isprintable()
    assert len(line) < 1100


# --- all commands ---------------------------------------------------------------------------------


def programs():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if '__name__ == "__main__"' in path.read_text() and name not in OTHERS:
                yield name


@pytest.mark.parametrize("name", list(programs()))
def test_every_command_has_this_frame(name):
    text = (ROOT / name).read_text()
    module = name.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
    assert text.rstrip().split("\n    ")[-1].startswith(f'sys.exit(run("{module}", '), name
    assert "argparse.ArgumentParser(" not in text


def test_every_number_on_a_command_line_has_a_range():
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.keyword) and node.arg == "type":
                    bare = isinstance(node.value, ast.Name) and node.value.id in ("int", "float")
                    assert not bare, f"{path}:{node.value.lineno}"
