"""The order of the house: folders say what they are, tests mirror sources, commands are listed."""

import ast
import functools
import io
import os
import re
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

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
COPIED = shutil.ignore_patterns("__pycache__", "*.parquet", "*.png", "*.c")
#: Programs that bench.py starts; nobody types them.
INTERNAL = {f"benchmarks/run/{name}.py" for name in ("worker", "observe", "clean")}

#: References as prose writes them: a dotted name, a path, Sphinx's role.
DOTTED = re.compile(rf"(?<![\w./-])((?:{'|'.join(PACKAGES)}|tests)(?:\.[A-Za-z_]\w*)+)(?![\w/])")
PATH = re.compile(rf"(?<![\w./-])((?:{'|'.join(PACKAGES)}|tests|conf)/[\w./-]*\w)")
ROLE = re.compile(r":(?:mod|func|class|data|meth|attr|exc):`~?([\w.]+)`")
#: Files that the reader or a command makes, and what only begins like a name of ours.
MADE = {"allocators/mine.py", "conf/allocator/mine.yaml", "conf/kernel/cost/host.yaml"}
SYSCTLS = {"kernel.randomize_va_space"}
SETTINGS = re.findall(r"^(\w+):", (ROOT / "conf/kernel/linux.yaml").read_text(), re.M)


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


def linted(folder):
    """What import-linter says of the project in ``folder``."""
    linter = Path(sys.executable).with_name("lint-imports")
    command = [linter, "--no-cache", "--no-logo"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_import_contracts_hold():
    done = linted(ROOT)
    assert done.returncode == 0, done.stdout
    for contract in ("kernel", "allocators", "benchmarks"):
        assert f"storeys of {contract}" in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("benchmarks/events/ledger.py", "import benchmarks.trace.formats", "storeys of benchmarks"),
        ("benchmarks/timing/perf.py", "import benchmarks.run.launch", "storeys of benchmarks"),
        ("kernel/engine/bits.py", "import kernel.types", "storeys of kernel"),
        ("kernel/vma.py", "import kernel.linux.host", "storeys of kernel"),
        ("allocators/base/tags.py", "import allocators.verify.plan", "storeys of allocators"),
        ("benchmarks/twin/__init__.py", "import benchmarks.interactive", "storeys of benchmarks"),
        ("benchmarks/run/job.py", "import hydra", "Only bench.py and benchmarks.run.compose"),
        ("benchmarks/run/summary.py", "import analysis.style", "Only bench.py"),
    ],
)
def test_an_upward_import_is_detected(tmp_path, file, line, contract):
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=COPIED)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / file).open("a") as text:
        text.write(f"{line}\n")
    done = linted(tmp_path)
    assert done.returncode == 1
    said = " ".join(done.stdout.split())
    assert contract in said.partition("Broken contracts")[2], said


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


def prose():
    """Yield (file, line, text) of every comment and docstring, the READMEs, the YAML and the C."""
    for path in [*python_files(*PACKAGES, "tests"), ROOT / "bench.py"]:
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type == tokenize.COMMENT or token.string.startswith(('"""', 'r"""')):
                yield path, token.start[0], token.string
    others = [*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "benchmarks").rglob("*.c")]
    documents = [ROOT / "CONTRIBUTING.md", ROOT / "README.md", *ROOT.glob("*/README.md")]
    for path in [*documents, *others]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            yield path, number, line


@functools.cache
def defined(path):
    """Names that a file defines or imports, those of classes and records included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).rpartition(".")[2])
    return names


def is_named(reference):
    """Whether a dotted name leads to a module, to a definition in one, or to a setting."""
    parts = reference.split(".")
    for length in range(len(parts), 0, -1):
        base, rest = ROOT.joinpath(*parts[:length]), parts[length:]
        path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if base.is_dir() and not rest:
            return True
        if path.is_file():
            settings = SETTINGS if parts[:length] == ["kernel"] else ()
            return set(rest) <= defined(path) or rest[0] in settings
    return False


def test_references_resolve():
    dangling = []
    for path, line, text in prose():
        where = f"{path.relative_to(ROOT)}:{line}: "
        dangling += [where + r for r in DOTTED.findall(text) if not is_named(r) | (r in SYSCTLS)]
        for name in PATH.findall(text):
            files = (ROOT / name, ROOT / "conf" / name, ROOT / "conf" / f"{name}.yaml")
            if "NAME" not in name and name not in MADE and not any(f.exists() for f in files):
                dangling.append(where + name)
        if path.suffix == ".py":
            known = defined(path)
            roles = [r for r in ROLE.findall(text) if r.split(".")[0] not in known]
            dangling += [where + r for r in roles if not is_named(r)]
    assert not dangling, "\n".join(dangling)


def test_a_dangling_reference_is_detected():
    assert is_named("kernel.window_bits")
    assert is_named("allocators.base.registry.names")
    assert is_named("benchmarks.trace")
    for name in ("kernel.window", "allocators.verify.heap", "kernel.nothing.here", "tests.nowhere"):
        assert not is_named(name), name


#: Functions may be longer than this only where they are tables, such as one Measure after another.
MOST_LINES = 60
TABLES = {"kernel/linux/calibrate/measures.py:measures"}


def test_functions_are_short():
    long = {
        f"{path.relative_to(ROOT)}:{node.name}"
        for path in [*python_files(*PACKAGES), ROOT / "bench.py"]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= MOST_LINES
    }
    assert long == TABLES
