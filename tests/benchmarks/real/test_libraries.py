"""Libraries that are missing, wrong or misbehave are reported on one line."""

import pytest

from allocators.base import library as lib
from allocators.base.library import Library, LibraryError, find
from benchmarks import workloads
from benchmarks.real import process
from benchmarks.real.memory import RealRun
from benchmarks.real.timed import check_process

SMALL = {"name": "churn", "operations": 2000, "live": 100, "seed": 3}

#: A bump allocator whose 500th block is WRONG.
BUMP = """
#include <stddef.h>
#include <stdlib.h>
static char heap[1 << 24];
static size_t at, blocks;
void *malloc(size_t n) {
    if (++blocks == 500) WRONG;
    size_t p = at; at += (n + 15) / 16 * 16; return heap + p;
}
void free(void *p) {}
void *calloc(size_t m, size_t n) { return malloc(m * n); }
void *realloc(void *p, size_t n) { return malloc(n); }
void *aligned_alloc(size_t a, size_t n) { return malloc(n); }
"""


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("native/nedmalloc", {}, "choose one of native/glibc, native/jemalloc"),
        ("native/lib", {"path": ""}, "path is missing"),
        ("native/lib", {"path": "/nowhere/lib.so"}, "there is no such file"),
        ("native/lib", {"path": __file__}, "not a shared library"),
        ("native/glibc", {"path": "/lib/libc.so.6"}, "cannot be preloaded"),
        ("native/glibc", {"threads": "two"}, "choose one of auto, one, real"),
        ("native/glibc", {"fit": "best"}, "unknown setting 'fit'"),
        ("native/glibc", {"tunables": "tcache_count"}, "expected names and values"),
        ("native/glibc", {"tunables": {"tcache count": 0}}, "is not a valid setting name"),
        ("native/glibc", {"tunables": {"tcache_count": "a:b c"}}, "expected a number or a word"),
        ("native/lib", {"path": "", "environment": {"LD_AUDIT": "x"}}, "belongs to the dynamic"),
    ],
)
def test_bad_settings(name, settings, message):
    with pytest.raises(LibraryError, match=message) as raised:
        find(name, settings)
    assert "\n" not in str(raised.value)


def test_unknown_tunables_are_noticed_where_the_loader_lists_them(glibc):
    if not lib._known_tunables():
        pytest.skip("this loader lists no tunables")
    with pytest.raises(LibraryError, match=r"no glibc\.malloc\.tcache_cuont; .*tcache_count"):
        find("native/glibc", {"tunables": {"tcache_cuont": 0}})


@pytest.mark.hardening(10)
@pytest.mark.parametrize(
    ("tunable", "value", "message"),
    [
        ("perturb", 256, "takes 0 to 255"),
        ("perturb", -1, "takes 0 to 255"),
        ("trim_threshold", "lots", "expected a number, 0 to 18446744073709551615"),
        ("trim_threshold", 1 << 64, "takes 0 to 18446744073709551615"),
        ("mmap_threshold", (32 << 20) + 1, "takes 0 to 33554432"),
        ("tcache_count", 65536, "takes 0 to 65535"),
        ("glibc.rtld.dynamic_sort", 3, "takes 1 to 2"),
    ],
)
def test_tunables_are_checked_against_the_loader_s_ranges(glibc, tunable, value, message):
    if not lib._known_tunables():
        pytest.skip("this loader lists no tunables")
    with pytest.raises(LibraryError, match=f"{tunable}={value}: .*{message}") as raised:
        find("native/glibc", {"tunables": {tunable: value}})
    assert "\n" not in str(raised.value)


@pytest.mark.hardening(10)
@pytest.mark.parametrize(
    "values",
    [{"trim_threshold": -1}, {"mmap_max": "0x10"}, {"tcache_count": 65535}, {"perturb": 255}],
)
def test_tunables_within_the_ranges_are_taken(glibc, values):
    assert find("native/glibc", {"tunables": values}).environment["GLIBC_TUNABLES"]


#: A library that speaks as the known ones do: its options when verbose, and what it cannot take.
SPEAKING = """
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void start(void) {
    const char *conf = getenv("MALLOC_CONF"), *reset = getenv("MIMALLOC_PAGE_RESET");
    getenv("TCMALLOC_RELEASE_RATE");
    if (getenv("MIMALLOC_VERBOSE")) fputs("mimalloc: option 'page_reset': 0\\n", stderr);
    if (getenv("MIMALLOC_RESET_DELAY"))
        fputs("mimalloc: warning: environment option \\"mimalloc_reset_delay\\" is deprecated\\n",
              stderr);
    if (reset && *reset == 'x')
        fputs("warning: environment option mimalloc_page_reset has an invalid value.\\n", stderr);
    if (conf) fputs("<jemalloc>: Out-of-range conf value: narenas:0\\n", stderr);
}
""" + BUMP.replace("WRONG", "")


@pytest.mark.hardening(10)
@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mimalloc", {"options": {"nonsense": 1}}, "has no nonsense; it has: page_reset"),
        ("mimalloc", {"options": {"page_reset": "x"}}, "has an invalid value"),
        ("tcmalloc", {"options": {"nonsense": 1}}, "no TCMALLOC_NONSENSE; .*TCMALLOC_RELEASE_RATE"),
        ("jemalloc", {"conf": {"narenas": 0}}, "Out-of-range conf value: narenas:0"),
        ("mimalloc", {"options": {"page_reset": 1}}, None),
        ("mimalloc", {"options": {"reset_delay": 1}}, None),
        ("tcmalloc", {"options": {"release_rate": 1}}, None),
    ],
)
def test_what_a_library_says_of_its_settings_is_heard(built, name, settings, message):
    given = settings | {"path": str(built(SPEAKING))}
    if message is None:
        assert find(f"native/{name}", given).environment
        return
    with pytest.raises(LibraryError, match=message) as raised:
        find(f"native/{name}", given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("jemalloc", "libjemalloc2"),
        ("mimalloc", "libmimalloc2.0"),
        ("tcmalloc", "libtcmalloc-minimal4"),
    ],
)
def test_a_missing_library_is_named_with_its_package(name, package, monkeypatch):
    monkeypatch.setattr(lib, "_places", lambda soname: iter(()))
    with pytest.raises(LibraryError, match=f"apt install {package}"):
        find(f"native/{name}", {})


def test_settings_reach_the_library_and_its_label(glibc):
    without = find("native/glibc", {"tunables": {"tcache_count": 0}})
    assert without.label == "native/glibc(tcache_count=0)"
    assert without.environment == {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
    spelled = find("native/glibc", {"tunables": {"glibc.malloc.tcache_count": 0}})
    assert (spelled.label, spelled.environment) == (without.label, without.environment)
    churn = workloads.load(SMALL)
    assert RealRun(without, churn).r.checksum != RealRun(glibc, churn).r.checksum


def test_a_library_by_path_runs_and_is_identified_by_its_hash(built):
    path = built(BUMP.replace("WRONG", ""))
    found = find("native/lib", {"path": str(path)})
    assert found.label == "native/lib(libit.so)"
    assert len(found.identity()["sha256"]) == 64
    metrics = RealRun(found, workloads.load(SMALL)).metrics()
    assert (metrics["syscalls"], metrics["peak_heap"]) == (0, 0)  # its memory is a variable
    assert metrics["faults"] > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("return *(char **)8", "SIGSEGV at address 0x8"),
        ("abort()", "was killed by SIGABRT"),
        ("for (;;) ;", "has not ended after"),
    ],
)
def test_the_error_of_a_misbehaving_library_names_the_event(built, monkeypatch, wrong, message):
    monkeypatch.setattr(process, "PATIENCE", 0.3)
    found = find("native/lib", {"path": str(built(BUMP.replace("WRONG", wrong)))})
    with pytest.raises(LibraryError, match=rf"event \d+.*{message}"):
        RealRun(found, workloads.load(SMALL))


def test_a_refused_request_is_a_result(built):
    found = find("native/lib", {"path": str(built(BUMP.replace("WRONG", "return NULL")))})
    run = RealRun(found, workloads.load(SMALL))
    assert run.metrics()["failed"] == 1
    assert run.metrics()["skipped"] == 1  # its free
    assert run.r.first_failure > 0


def test_a_library_without_a_function_is_not_mixed_with_another(built):
    text = BUMP.replace("WRONG", "").split("void *realloc")[0]
    found = find("native/lib", {"path": str(built(text))})
    with pytest.raises(LibraryError, match=r"realloc would come from .*libc\.so"):
        RealRun(found, workloads.load(SMALL))


def test_a_process_on_another_library_is_noticed(glibc, tmp_path):
    check_process(glibc)
    other = Library("native/lib", "native/lib", tmp_path / "libit.so", "one", {})
    with pytest.raises(LibraryError, match="the library was not preloaded"):
        check_process(other)
