"""Does the project work as pip installs it, and does it find somebody else's package?

The wheel is built from the sdist, of the tracked files alone, and goes into an environment of its
own, outside the checkout.  The dependencies are those of the environment that runs the tests: its
folder is on the path, but not the .pth file by which it sees the checkout.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

pytestmark = pytest.mark.wheel

BUMP = (ROOT / "allocators" / "bump.py").read_text()
STACK = (ROOT / "benchmarks" / "workloads" / "stack.py").read_text()
#: What is tracked and belongs to the checkout alone, besides tests/.
NOT_INSTALLED = {
    *(".ci/run", ".gitignore", ".pre-commit-config.yaml", "pyproject.toml"),
    *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md"),
}
SMALL = ("measure=counters", "workload.operations=20000")
CHURN = ("workload=churn", "workload.live=500", *SMALL)
PYPROJECT = """
[project]
name = "{name}"
version = "1"
[project.entry-points."malloc_bench.plugins"]
{name} = "{folder}"
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[tool.setuptools.packages.find]
include = ["{name}*"]
[tool.setuptools.package-data]
"*" = ["*.yaml"]
"""


def tracked():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


def run(*command, **options):
    words = list(map(str, command))
    return subprocess.run(words, capture_output=True, text=True, timeout=600, **options)


def succeeded(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    succeeded(run(sys.executable, "-m", "build", "--outdir", out, source))
    (path,) = out.glob("*.whl")
    return path


class Home:
    """An environment with the wheel, and a directory elsewhere to work in."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder / "env", with_pip=False)
        self.bin = folder / "env" / "bin"
        self.site = Path(self.python("-c", "import site; print(*site.getsitepackages())"))
        shared = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (self.site / "dependencies.pth").write_text("\n".join(shared))
        self.folder, self.work = folder, folder / "elsewhere"
        # What another project may have in the directory where the command is run.
        for name in ("kernel", "benchmarks", "conf"):
            (self.work / name).mkdir(parents=True)
            (self.work / name / "__init__.py").write_text("raise SystemError('of another project')")
        self.pip("--no-deps", "--no-index", wheel)

    def python(self, *arguments):
        return succeeded(run(self.bin / "python", *arguments)).stdout.strip()

    def pip(self, *arguments):
        """Install into the environment; with ``--target`` elsewhere."""
        command = (sys.executable, "-m", "pip", "--python", self.bin / "python", "install", "-q")
        succeeded(run(*command, *arguments))

    def package(self, name: str, files: dict[str, str], folder: str = "") -> Path:
        """The source of a package that is a folder of plugins; its entry point says ``folder``."""
        source = self.folder / "sources" / name
        everything = {"__init__.py": "raise SystemError('nobody imports this')", **files}
        for file, text in everything.items():
            (source / name / file).parent.mkdir(parents=True, exist_ok=True)
            (source / name / file).write_text(text)
        text = PYPROJECT.format(name=name, folder=folder or name)
        (source / "pyproject.toml").write_text(text)
        return source

    def beside(self, name: str, files: dict[str, str], folder: str = "") -> dict[str, str]:
        """The environment's variables with which such a package is installed too."""
        target = self.folder / "targets" / name
        self.pip("--no-deps", "--target", target, self.package(name, files, folder))
        return {"PYTHONPATH": str(target)}

    def command(self, *words, python=False, **environment):
        """Run ``malloc-bench`` elsewhere, or ``python`` in an empty directory there."""
        work = self.work / "empty" if python else self.work
        work.mkdir(exist_ok=True)
        program = self.bin / ("python" if python else "malloc-bench")
        return run(program, *words, cwd=work, env=self.environment | environment)

    @property
    def environment(self):
        without = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return without | {"NUMBA_CACHE_DIR": str(self.folder / "cache"), "COLUMNS": "132"}


def allocator(name: str, named: str = "") -> dict[str, str]:
    """A bump of one's own as the files of a package."""
    yaml = f"name: {named or name + '.py'}\ngrowth: 65536\n"
    return {f"allocator/{name}.py": BUMP, f"allocator/{name}.yaml": yaml}


@pytest.fixture(scope="module")
def home(tmp_path_factory, wheel):
    home = Home(tmp_path_factory.mktemp("home"), wheel)
    pile = (ROOT / "conf/workload/stack.yaml").read_text().replace("name: stack", "name: pile")
    workload = {"workload/pile.py": STACK, "workload/pile.yaml": pile}
    home.pip("--no-deps", home.package("theirs", allocator("theirs") | workload))
    return home


def results(done) -> Path:
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("results: "), done.stdout + done.stderr
    return Path(last.removeprefix("results: "))


def fails(done, code, *words):
    """Assert that ``done`` exited with ``code`` and one line that contains ``words``."""
    assert done.returncode == code, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert all(str(word) in line for word in words), line


def test_the_wheel_holds_what_is_tracked(wheel):
    with zipfile.ZipFile(wheel) as content:
        names = {name for name in content.namelist() if ".dist-info/" not in name}
    pictures = {name for name in tracked() if name.endswith(".png")}
    tests = {name for name in tracked() if name.startswith("tests/")}
    assert names == tracked() - NOT_INSTALLED - pictures - tests


def test_modules_are_imported_from_the_wheel(home):
    modules = "allocators, analysis, bench, benchmarks, kernel"
    script = f"import {modules}; print(*(m.__file__ for m in ({modules})), sep=chr(10))"
    for path in home.python("-P", "-c", script).splitlines():
        assert Path(path).is_relative_to(home.site)


# --- Somebody else's package ----------------------------------------------------------------------


def test_an_external_allocator_runs(home):
    done = succeeded(home.command("allocator=theirs", *CHURN))
    assert "warning" not in done.stderr
    assert results(done).parent == home.work / "results"
    assert json.loads((results(done) / "run.json").read_text())["label"] == "theirs(growth=65536)"


def test_an_external_workload_runs_and_is_timed(home):
    sweep = ("-m", "allocator=theirs,bump", "workload=pile", "measure=quick")
    sweep += ("measure.rounds=1", SMALL[1])
    directory = results(succeeded(home.command(*sweep)))
    assert len(list(directory.glob("*-pile/bench.json"))) == 2


def test_help_lists_external_and_own_choices(home):
    lines = succeeded(home.command("--help")).stdout.splitlines()
    assert any(line.startswith("allocator: ") and " theirs" in line for line in lines)
    assert any(line.startswith("workload: ") and " pile" in line for line in lines)
    assert "  malloc-bench allocator=buddy workload=churn" in lines


def test_an_external_allocator_is_verified(home):
    command = (
        "-m",
        "allocators.verify",
        "theirs",
        "--operations=2000",
        "--settings",
        "growth=4096",
    )
    done = home.command(*command, python=True, NUMBA_DISABLE_JIT="1")
    assert "theirs(growth=4096), 4 KiB pages: ok" in succeeded(done).stdout


@pytest.mark.parametrize(("name", "other"), [("theirs", "theirs"), ("bump", "conf")])
def test_a_duplicate_name_is_refused(home, name, other):
    rival = home.beside(f"rival_{name}", allocator(name))
    places = (f"rival_{name}/allocator/{name}.", f"{other}/allocator/{name}.")
    fails(home.command(f"allocator={name}", *CHURN, **rival), 1, "is defined twice", *places)
    verify = ("-m", "allocators.verify", name)
    fails(
        home.command(*verify, python=True, **rival), 2, "is defined twice", places[0], f"{name}.py"
    )
    assert "rival" not in succeeded(home.command("allocator=kr", *CHURN, **rival)).stderr


def test_a_missing_package_breaks_nothing_else(home):
    broken = home.beside("broken", {}, folder="nowhere.at_all")
    said = succeeded(home.command("allocator=bump", *CHURN, **broken)).stderr
    (warning,) = (line for line in said.splitlines() if "broken" in line)
    assert warning.startswith("warning: package broken: entry point broken = nowhere.at_all")
    done = home.command("allocator=broken", *CHURN, **broken)
    assert done.returncode == 1
    assert "package broken" in done.stderr
    assert "Could not find 'allocator/broken'" in done.stderr
    assert "Traceback" not in done.stderr
    verify = ("-m", "allocators.verify", "broken")
    fails(
        home.command(*verify, python=True, **broken), 2, "no allocator 'broken'", "nowhere.at_all"
    )


def test_a_name_without_a_file_is_reported(home):
    lost = {"allocator/lost.yaml": "name: los.py\n", "allocator/astray.yaml": "name: astra\n"}
    beside = home.beside("lost", lost)
    folder = Path(beside["PYTHONPATH"]) / "lost" / "allocator"
    fails(home.command("allocator=lost", *CHURN, **beside), 1, "name=los.py", folder)
    fails(home.command("allocator=astray", *CHURN, **beside), 1, "no allocator 'astra'", "theirs")


def test_a_module_that_fails_to_import_breaks_nothing_else(home):
    beside = home.beside("faulty", allocator("faulty") | {"allocator/faulty.py": "1 / 0\n"})
    fails(home.command("allocator=faulty", *CHURN, **beside), 1, "faulty.py:1: ZeroDivisionError")
    assert "faulty" not in succeeded(home.command("allocator=bump", *CHURN, **beside)).stderr


# --- The same command as in the checkout ----------------------------------------------------------


def test_the_exit_codes_are_those_of_bench_py(home):
    assert home.command("allocator=bump", "kernel.rlimit_data=300000", *CHURN).returncode == 3
    fails(home.command("allocator=bump", "seed=x", *CHURN), 1, "malloc-bench: seed=x")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_reported(home, number):
    directory = home.work / f"interrupted{number}"
    words = ("allocator=bump", *CHURN, "workload.operations=200000000")
    process = subprocess.Popen(
        [home.bin / "malloc-bench", *words, f"hydra.run.dir={directory}"],
        cwd=home.work,
        env=home.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not (directory / "run.json").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert b"malloc-bench: interrupted" in said
    assert b"Traceback" not in said
    assert json.loads((directory / "run.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize(
    "words",
    [
        "benchmarks",
        "benchmarks.trace info shipped:jq --plot jq.png",
        "benchmarks.trace record -o bash.parquet -- bash -c true",
        "benchmarks.speed bump --events=60000 --rounds=1",
        "kernel.linux.replay record -o true.log -- true",
        "kernel.linux.verify --ops 200 --no-branches",
        "analysis --help",
        "benchmarks.twin.predict --help",
    ],
)
def test_every_command_works_from_elsewhere(home, words):
    done = home.command("-m", *words.split(), python=True)
    if done.returncode == 77:
        pytest.skip(done.stderr)
    assert succeeded(done).stdout.strip() or "record" in words


def test_every_yaml_is_found(home):
    config = yaml.safe_load((home.site / "conf/kernel/cost/reference.yaml").read_text())
    script = "from benchmarks.twin.predict import report; print(report._REFERENCE)"
    path = Path(home.python("-P", "-c", script))
    assert path.is_relative_to(home.site)
    assert yaml.safe_load(path.read_text()) == config
