"""The order of the house: folders say what they are, tests mirror sources, commands are listed."""

import ast
import subprocess
import sys

import pytest

from benchmarks.__main__ import commands
from tests.conftest import ROOT

PACKAGES = ("kernel", "allocators", "benchmarks", "analysis")
FOLDERS = sorted(
    path.parent.relative_to(ROOT)
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if path.name == "__init__.py"
)
#: Programs that bench.py starts; nobody types them.
INTERNAL = {"benchmarks/run/worker.py", "benchmarks/run/observe.py"}


def python_files(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(path):
    """Names of the modules that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_folder_with_code_is_a_package():
    folders = {path.parent.relative_to(ROOT) for path in python_files(*PACKAGES)}
    assert folders == set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_a_folder_says_what_lives_there_and_what_imports_it(folder):
    text = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text())) or ""
    assert text.count(".") >= 2, f"{folder}: say what lives there, and who imports it"
    assert "import" in text.lower(), f"{folder}: say what it may import"


def test_no_allocator_imports_another():
    plugins = [p for p in (ROOT / "allocators").glob("*.py") if p.stem != "__init__"]
    for path in plugins:
        others = {f"allocators.{p.stem}" for p in plugins if p != path}
        assert not others & set(imported(path)), path.name


def test_tests_mirror_the_source_tree():
    for path in python_files("tests"):
        folder = path.parent.relative_to(ROOT / "tests")
        exceptions = {"kernel/frames", "kernel/tlb"}  # each a switch of the model, many files
        if str(folder) not in exceptions:
            assert (ROOT / folder).is_dir(), f"tests/{folder}: there is no {folder}"


def test_every_program_is_listed_or_internal():
    listed = {command.split()[2] for command, _ in commands() if "-m" in command}
    for path in python_files(*PACKAGES):
        name = str(path.relative_to(ROOT))
        if '__name__ == "__main__"' in path.read_text() and name not in INTERNAL:
            module = name.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
            assert module in listed, f"{name}: its docstring names no command"


def test_the_list_of_commands_is_printed():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) == len(list(commands()))
    assert "python -m kernel.linux.verify " in done.stdout
