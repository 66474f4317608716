"""A plugin or setting that cannot be used is refused with one line that says where and why."""

import re

import numpy as np
import pytest

from allocators.base import contract, faults, registry, settings
from allocators.base.contract import CONTRACT, REQUIRED, Promises
from allocators.base.registry import PluginError, load
from kernel.engine.jit import is_jit


def refused(name, values=None):
    with pytest.raises(PluginError) as error:
        load(name, values)
    return str(error.value)


# --- Finding and importing ------------------------------------------------------------------------


def test_an_unknown_name_lists_the_choices():
    message = refused("budy")
    assert "no allocator 'budy'; choose one of" in message
    for name in registry.names():
        assert name in message


def test_support_modules_are_no_allocators():
    assert {"bump", "buddy"} <= set(registry.names())
    assert not {"contract", "mapped", "registry", "settings", "verify"} & set(registry.names())
    assert "no allocator 'contract'" in refused("contract")


def test_a_file_that_is_not_there():
    message = "no allocator file somewhere/else.py: there is no such file"
    assert refused("somewhere/else.py") == message


@pytest.mark.parametrize(
    ("old", "new", "line", "kind"),
    [
        ("def free(k, a, p):", "def free(k, a, p:", "def free(k, a, p:", "SyntaxError"),
        ("STATE =", "1 / 0\nSTATE =", "1 / 0", "ZeroDivisionError"),
        ("import numpy as np", "import numpyy as np", "import numpyy as np", "ModuleNotFoundError"),
        ("load, store", "load, stor", "from kernel.access import load, stor", "ImportError"),
    ],
)
def test_a_file_that_does_not_import_names_the_line(files, old, new, line, kind):
    text = files.tiny.replace(old, new)
    path = files.write("broken", text)
    message = refused(path)
    number = text.splitlines().index(line) + 1
    assert re.search(rf"broken\.py:{number}: {kind}: ", message), message


def test_an_error_without_a_line_names_the_file(files):
    text = "raise SystemError('no memory')\n".replace("raise", "import numpy as np\nraise")
    assert "broken.py:2: SystemError: no memory" in refused(files.write("broken", text))
    assert faults.last_line(ValueError(), files.folder) == 0
    assert faults.located(ValueError("x"), files.folder) == f"{files.folder}: ValueError: x"


def test_a_repaired_file_is_loaded_anew(files):
    path = files.write("repaired", "1 / 0\n")
    refused(path)
    files.write("repaired", files.tiny)
    assert load(path).name == "repaired"


@pytest.mark.parametrize("part", ["STATE", *REQUIRED])
def test_a_missing_part_is_named(files, part):
    text = re.sub(rf"\b{part}\b", f"{part}_", files.tiny)
    assert re.search(rf"does not define {part}$", refused(files.write("partial", text)))


@pytest.mark.parametrize("part", ["malloc", "usable_size"])
def test_an_unmarked_function_is_named(files, part):
    text = files.tiny.replace(f"@jit\ndef {part}(", f"def {part}(")
    message = refused(files.write("unmarked", text))
    line = text[: text.index(f"def {part}(")].count("\n") + 1
    assert message.endswith(f"unmarked.py:{line}: {part} must be a function marked @jit")


def test_a_setting_may_not_bear_the_name_of_a_switch(files):
    text = files.tiny.replace("STATE =", "PAGE_SHIFT = number(3)\nSTATE =", 1)
    text = text.replace(
        "import numpy", "from allocators.base.settings import number\nimport numpy", 1
    )
    assert "PAGE_SHIFT is a compile-time switch;" in refused(files.write("switch", text))


def test_a_state_field_may_not_bear_the_name_of_a_record(files):
    message = refused(files.write("field", files.tiny.replace('"spare"', '"size"')))
    assert "field.py:9: STATE has a field 'size'" in message


# --- Settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kep": 1}, "unknown setting 'kep' (it has: min_order, max_order, growth, keep)"),
        ({"keep": -1}, "keep=-1: must be 0 to 1048576"),
        ({"min_order": 31}, "min_order=31: must be 5 to 30"),
        ({"keep": "many"}, "keep=many: expected a whole number"),
        ({"keep": 1.0}, "keep=1.0: expected a whole number"),
        ({"keep": True}, "keep=True: expected a whole number"),
        ({"keep": None}, "keep=None: expected a whole number"),
        ({"growth": "sbrk"}, "growth=sbrk: choose one of brk, mmap"),
        ({"growth": 1}, "growth=1: choose one of brk, mmap"),
        ({"min_order": 15, "max_order": 14}, "min_order (15) is above max_order (14)"),
    ],
)
def test_bad_settings_are_named(values, message):
    assert f"allocator buddy: {message}" in refused("buddy", values)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("arena", {"region_size": 5000}, "region_size (5000) is not a power of two"),
        ("arena", {"region_size": 4096}, "mmap_threshold (16384) exceeds"),
        ("first_fit", {"trim_threshold": 4096, "growth": 4096}, "trim_threshold (4096)"),
        ("segregated", {"run_size": 5000}, "run_size (5000) is not a power of two"),
        ("segregated", {"mmap_threshold": 8192, "run_size": 4096}, "is above run_size (4096)"),
        ("segregated", {"chunk_size": 262144, "run_size": 262144}, "holds no run of 262144"),
        (
            "segregated",
            {"chunk_size": 1 << 30, "run_size": 4096, "mmap_threshold": 512},
            "is too large for run_size",
        ),
    ],
)
def test_settings_that_do_not_fit_together(name, values, message):
    assert message in refused(name, values)


def test_a_plugin_without_settings_says_so(files):
    message = refused(files.write("bare", files.tiny), {"keep": 1})
    assert message.endswith("unknown setting 'keep' (it has: none)")


def test_settings_are_parsed_spelled_and_labelled():
    plugin = load("buddy", {"growth": "mmap", "keep": 1, "max_order": 21})
    assert plugin.values["growth"] == 1
    assert plugin.formatted() == {"min_order": 5, "max_order": 21, "growth": "mmap", "keep": 1}
    assert plugin.label == "buddy(max_order=21, growth=mmap)"
    assert load("buddy").label == "buddy"
    assert load("buddy", plugin.formatted()).values == plugin.values


def test_kinds_of_settings():
    fit = settings.choice("first", "best", default="best", text="which")
    assert (int(fit), fit.low, fit.high, fit.text) == (1, 0, 1, "which")
    assert fit.parse("fit", "first") == 0
    assert settings.choice("false", "true").parse("trim", True) == 1  # YAML's true
    bytes_ = settings.size(4096, low=4096)
    assert bytes_.parse("growth", 8192) == 8192
    assert settings.number(3).format(7) == 7


# --- Loaded plugins -------------------------------------------------------------------------------


def test_bindings_are_the_contract_and_the_constants(files):
    plugin = load("buddy", {"keep": 5})
    bindings = plugin.bindings()
    assert set(CONTRACT) < set(bindings)
    assert all(is_jit(bindings[name]) for name in CONTRACT)
    assert bindings["KEEP"] == 5
    assert bindings["malloc"] is plugin.module.malloc
    bare = load(files.write("bare", files.tiny))
    assert bare.bindings()["walk"] is contract.walk
    assert bare.promises() == Promises()
    assert bare.state().dtype.names == ("top", "spare")


def test_a_library_plugin_is_imported_once():
    assert load("bump").module is load("bump").module


def test_the_contract_cannot_be_called_unbound():
    with pytest.raises(NotImplementedError):
        contract.malloc(None, None, 1)
    with pytest.raises(NotImplementedError):
        contract.usable_size(None, None, 1)
    with pytest.raises(NotImplementedError):
        contract.free(None, None, 1)
    assert contract.init(None, None) is None
    assert contract.NO_STATE.names


def test_a_walk_counts_rows_that_do_not_fit():
    rows = np.zeros((1, 3), "i8")
    n = contract.emit(rows, 0, 4096, 16, contract.BLOCK_USED)
    assert contract.emit(rows, n, 8192, 16, contract.BLOCK_FREE) == 2
    assert rows.tolist() == [[4096, 16, contract.BLOCK_USED]]
