"""``python -m benchmarks.twin.verify.mutations``: break rules of the twin; each must be noticed.

``python -m benchmarks.twin.verify.mutations`` runs programs against each broken twin until one
shows a difference, and tells after how many operations.  Exit code 1 when one is never noticed, 77
where there is no truth to hold it against.

A mutation changes a few words of a function's source, or a constant.  Where the words are no longer
there it fails, so that no rule stays unbroken unnoticed.
"""

import argparse
import inspect
import multiprocessing
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from allocators.base import registry
from benchmarks.twin.verify import directed
from benchmarks.twin.verify.modes import MODES
from benchmarks.twin.verify.run import Finding, Plan, Report, Runner, keep

ALLOCATOR = "ptmalloc"
#: Operations of a random program at most: most rules are noticed early.
_LENGTH = 12_000
#: Seconds to shorten a program that is kept.
_SHRINK = 60.0
_ORDER = ("small", "burst", "mixed", "big", "threads")


@dataclass(frozen=True)
class Mutation:
    """A broken rule: in the source of ``function`` the first of each pair becomes the second.

    Or the constant ``function`` gets the value ``constant``.
    """

    rule: str
    function: str
    edits: tuple[tuple[str, str], ...] = ()
    constant: int | None = None

    def bindings(self, module: ModuleType) -> dict[str, Any]:
        """What :func:`kernel.engine.jit.build` replaces.  Raises ValueError for words not found."""
        if self.constant is not None:
            if getattr(module, self.function) == self.constant:
                raise ValueError(f"{self.rule}: {self.function} is {self.constant} already")
            return {self.function: self.constant}
        return {self.function: self._edited(module)}

    def path(self, folder: Path) -> Path:
        """Where the program that shows it is kept."""
        return folder / f"{self.rule.replace(' ', '_').replace(',', '').replace(chr(39), '')}.json"

    def _edited(self, module: ModuleType) -> Callable:
        function = getattr(module, self.function)
        source = textwrap.dedent(inspect.getsource(function))
        for old, new in self.edits:
            if (count := source.count(old)) != 1:
                raise ValueError(f"{self.rule}: {self.function} has {old!r} {count} times")
            source = source.replace(old, new)
        scope = dict(vars(module))
        exec(compile(source, module.__file__, "exec"), scope)  # our own source, a few words changed
        return scope[self.function]


def _edit(rule: str, function: str, *pairs: str) -> Mutation:
    """A mutation of the words of ``function``; ``pairs``: old, new, old, new."""
    return Mutation(rule, function, tuple(zip(pairs[::2], pairs[1::2], strict=True)))


MUTATIONS = (
    _edit(
        "a fastbin fills the tcache to its count",
        "take_fast",
        "while count < TCACHE_COUNT",
        "while count < TCACHE_COUNT - 1",
    ),
    _edit(
        "a small bin fills the tcache to its count",
        "take_small",
        "while count < TCACHE_COUNT",
        "while count < TCACHE_COUNT - 1",
    ),
    _edit(
        "chunks of the unsorted list fill the tcache",
        "take_unsorted",
        "if count < TCACHE_COUNT:",
        "if count < 0:",
    ),
    _edit(
        "tcache_unsorted_limit bounds the sorting",
        "take_unsorted",
        "sorted_ > TCACHE_UNSORTED_LIMIT",
        "False",
    ),
    _edit(
        "small bins are first in, first out",
        "take_last",
        "p = a.bk[head]",
        "p = a.fd[head]",
        "before = load(k, p + BK)",
        "before = load(k, p + FD)",
        "a.bk[head] = before",
        "a.fd[head] = before",
        "set_forward(k, a, before, head)",
        "set_backward(k, a, before, head)",
    ),
    _edit(
        "small requests in a row are cut from the last remainder",
        "take_unsorted",
        "and p == a.last_remainder[av]",
        "and p == 0",
    ),
    _edit(
        "only small requests leave a last remainder",
        "take_larger",
        "if remainder and is_small(nb):",
        "if remainder:",
    ),
    _edit(
        "a chunk becomes the second of its size in a large bin",
        "sort_chunk",
        "if size == other:",
        "if size == other and size < 0:",
    ),
    _edit(
        "a sorted chunk is marked in the map of bins",
        "sort_chunk",
        "|= 1 << (number_ & 31)",
        "|= 0",
    ),
    _edit(
        "a large request takes the second chunk of a size",
        "take_large",
        "            p = after",
        "            p = p",
    ),
    _edit(
        "a large request takes the smallest chunk that fits",
        "take_large",
        "while size < nb:",
        "while size < nb + MINSIZE and p != a.fd[head]:",
    ),
    _edit(
        "larger bins give their smallest chunk",
        "take_larger",
        "p = a.bk[head]",
        "p = a.fd[head]",
    ),
    _edit(
        "a rest of 32 bytes is a chunk of its own",
        "split_chunk",
        "if rest < MINSIZE:",
        "if rest < 2 * MINSIZE:",
    ),
    Mutation("sizes from 1024 on have large bins", "MIN_LARGE", constant=1008),
    _edit(
        "a free chunk goes first into the unsorted list",
        "add_unsorted",
        "first = a.fd[unsorted]",
        "first = unsorted",
        "store(k, p + BK, unsorted)",
        "last = a.bk[unsorted]\n    store(k, p + BK, last)",
        "a.fd[unsorted] = p",
        "set_forward(k, a, last, p)",
        "set_backward(k, a, first, p)",
        "a.bk[unsorted] = p",
    ),
    Mutation("one search sorts ten thousand chunks", "MAX_ITERS", constant=100),
    Mutation("a free of 64 KiB consolidates", "CONSOLIDATION_THRESHOLD", constant=(64 << 10) + 16),
    _edit(
        "a large request consolidates first",
        "int_malloc",
        "elif a.have_fastchunks[av]:",
        "elif False:",
    ),
    _edit(
        "fastbins consolidate from the smallest on",
        "malloc_consolidate",
        "range(av * FASTBINS, av * FASTBINS + FASTBINS)",
        "range(av * FASTBINS + FASTBINS - 1, av * FASTBINS - 1, -1)",
    ),
    _edit(
        "the largest fastbin is of 128 bytes",
        "max_fast",
        "(MXFAST + 8) & -ALIGNMENT",
        "(MXFAST + 24) & -ALIGNMENT",
    ),
    _edit("the break grows by top_pad more", "grow_main", "nb + TOP_PAD + MINSIZE", "nb + MINSIZE"),
    _edit(
        "trimming leaves top_pad",
        "free_normal",
        "systrim(k, a, TOP_PAD)",
        "systrim(k, a, 0)",
    ),
    _edit(
        "nobody else's break is trimmed",
        "systrim",
        "if end != a.top[0] + size:",
        "if end < 0:",
    ),
    _edit(
        "freeing a mapping raises the mmap threshold",
        "free_mapped",
        "a.mmap_threshold = head & ~FLAGS",
        "a.mmap_threshold = a.mmap_threshold",
    ),
    _edit(
        "the trim threshold rises with the mmap threshold",
        "free_mapped",
        "a.trim_threshold = 2 * a.mmap_threshold",
        "a.trim_threshold = a.trim_threshold",
    ),
    _edit(
        "the mmap threshold rises to 32 MiB at most",
        "free_mapped",
        "<= MMAP_THRESHOLD_MAX",
        "<= 2 * MMAP_THRESHOLD_MAX",
    ),
    _edit(
        "the mmap threshold itself is mapped",
        "sysmalloc",
        "nb >= a.mmap_threshold",
        "nb > a.mmap_threshold",
    ),
    Mutation("a mapping as heap is of whole MiB", "MMAP_AS_MORECORE", constant=4096),
    _edit(
        "a mapping as heap ends contiguity",
        "grow_main",
        "a.noncontiguous = 1",
        "a.noncontiguous = 0",
    ),
    _edit(
        "two fences end an old top",
        "grow_main",
        "old_size = (old_size - 2 * HEADER) & -ALIGNMENT",
        "old_size = (old_size - 3 * HEADER) & -ALIGNMENT",
    ),
    _edit(
        "realloc grows into the top",
        "int_realloc",
        "if after == a.top[av] and",
        "if after == 0 and",
    ),
    _edit(
        "realloc grows into a free neighbour",
        "int_realloc",
        "and old + after_size >= nb\n",
        "and old + after_size >= nb + (1 << 50)\n",
    ),
    _edit(
        "realloc looks at its head again",
        "int_realloc",
        "head = load(k, p + HEAD)  #",
        "head = head  #",
    ),
    _edit(
        "realloc remaps a mapping",
        "realloc_mapped",
        "if start >= 0:",
        "if start >= 0 and length == 0:",
    ),
    _edit(
        "aligned_alloc asks for the alignment and 32 bytes more",
        "aligned_alloc",
        "nb + alignment + MINSIZE",
        "nb + alignment + 2 * MINSIZE",
    ),
    _edit(
        "aligned_alloc frees the end that is left",
        "aligned_alloc",
        "if had > nb + MINSIZE:",
        "if had > nb + 2 * MINSIZE:",
    ),
    _edit(
        "calloc does not clear what comes fresh from the kernel",
        "calloc",
        "length = old_size",
        "length = length",
    ),
    _edit(
        "calloc does not take from the tcache",
        "calloc",
        "    t = thread_cache(k, a)\n",
        "    t = thread_cache(k, a)\n"
        "    i = tcache_index(chunk_for(size))\n"
        "    if t and tcache_serves(i) and tcache_count(k, t, i):\n"
        "        return tcache_get(k, t, i, tcache_count(k, t, i))\n",
    ),
    _edit(
        "malloc_trim drops the pages inside free chunks",
        "drop_pages",
        "if length > page - 1:",
        "if length < 0:",
    ),
    _edit(
        "an arena without threads is taken first",
        "choose_arena",
        "if a.free_list:",
        "if a.free_list < 0:",
    ),
    _edit(
        "arena_test is not the limit",
        "choose_arena",
        "8 * CORES if a.narenas > ARENA_TEST else ARENAS",
        "ARENA_TEST",
    ),
    _edit(
        "arenas are shared in turn",
        "choose_arena",
        "a.next_to_use = a.next_arena[av]",
        "a.next_to_use = av",
    ),
    _edit(
        "a new arena comes next behind the main one",
        "new_arena",
        "a.next_arena[av] = a.next_arena[0]\n    a.next_arena[0] = av",
        "a.next_arena[av] = 0\n    a.next_arena[av - 1] = av",
    ),
    _edit(
        "another arena is tried when one refuses",
        "arena_malloc",
        "if p == 0 and av >= 0",
        "if p == 0 and av < -1",
    ),
    _edit(
        "a thread that ends frees what its tcache holds",
        "thread_exit",
        "while q:",
        "while q < 0:",
    ),
    _edit(
        "a thread that ends frees its tcache",
        "thread_exit",
        "int_free(k, a, arena_of(k, t - HEADER, head), 0, t - HEADER, head)",
        "t = 0",
    ),
    _edit(
        "an arena is free when its last thread ends",
        "thread_exit",
        "if a.attached[av] == 0:",
        "if a.attached[av] >= 0:",
    ),
    _edit("a heap begins with the pad", "new_heap", "size += TOP_PAD", "size += 0"),
    _edit(
        "a heap grows without a pad",
        "grow_heap",
        "page_align(more)",
        "page_align(more + TOP_PAD)",
    ),
    _edit(
        "what was once made usable stays so",
        "grow_heap",
        "if size > usable:",
        "if size > 0:",
    ),
    _edit(
        "a heap is reserved where room was left",
        "reserve_heap",
        "if a.aligned_heap_area:",
        "if a.aligned_heap_area < 0:",
    ),
    _edit(
        "the rest of a full heap's top is freed",
        "grow_arena",
        "if old_size >= MINSIZE:",
        "if old_size > 2 * MINSIZE:",
    ),
    _edit(
        "a heap of nothing but top goes",
        "heap_trim",
        "while a.top[av] == heap + HEAP_INFO:",
        "while a.top[av] == heap:",
    ),
    _edit(
        "a heap's end is trimmed from the trim threshold on",
        "heap_trim",
        "size < a.trim_threshold",
        "size <= 2 * a.trim_threshold",
    ),
    _edit(
        "realloc looks in other arenas",
        "realloc",
        "if q == 0 and a.multiple < 0:",
        "if q < 0:",
    ),
)


def _programs(runner: Runner, programs: int) -> Iterator[Callable[[], Report]]:
    """Programs, those first that find most; those that need builds of their own last."""
    for name, program in directed.PROGRAMS.items():
        if not program.tunables:
            yield lambda name=name: runner.directed(name)
    for number in range(programs):
        for mode in _ORDER:
            yield lambda mode=mode, number=number: runner.program(mode, number, _LENGTH)
    for name, program in directed.PROGRAMS.items():
        if program.tunables:
            yield lambda name=name: runner.directed(name)


@dataclass
class Hunt:
    """What became of a rule: operations until a difference, and the program, None where none."""

    operations: int = 0
    finding: Finding | None = None


def hunt(mutation: Mutation, programs: int, shrink_seconds: float = 0) -> Hunt:
    """Run programs against a broken twin until one differs, and shorten that one."""
    bindings = mutation.bindings(registry.load(ALLOCATOR).module)
    plan = Plan(
        ALLOCATOR, 1, 1, count_branches=False, shrink_seconds=shrink_seconds, bindings=bindings
    )
    found = Hunt()
    for program in _programs(Runner(plan), programs):
        report = program()
        found.operations += report.tally.operations
        if report.finding:
            found.finding = report.finding
            break
    return found


def _hunt_apart(mutation: Mutation, programs: int, shrink_seconds: float) -> Hunt:
    """The same in a process of its own: the loop of a broken twin may not come back."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def work() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        theirs.send(hunt(mutation, programs, shrink_seconds))

    process = context.Process(target=work, daemon=True)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.kill()
        process.join()


def _told(mutation: Mutation, found: Hunt) -> str:
    """One line."""
    if not found.finding:
        return f"NOT NOTICED in {found.operations} operations: {mutation.rule}"
    setting, what = found.finding.setting, found.finding.what
    place = f"{what}; mode {setting.mode}, {setting.seed}"
    return f"noticed after {found.operations:6} operations: {mutation.rule} ({place})"


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.twin.verify.mutations", description=__doc__
    )
    parser.add_argument("--programs", type=int, default=12, help="random ones of each mode at most")
    parser.add_argument("--only", default="", metavar="TEXT", help="rules that contain TEXT")
    parser.add_argument("--jobs", type=int, default=1, help="rules at a time (default 1)")
    parser.add_argument(
        "--store", type=Path, metavar="DIRECTORY", help="keep the shortest program found for each"
    )
    options = parser.parse_args(argv)
    from benchmarks.twin.verify.report import unavailable, wrong_library

    if reason := unavailable() or wrong_library():
        print(f"benchmarks.twin.verify: nothing verified: {reason}", file=sys.stderr)
        return 77
    rules = [m for m in MUTATIONS if options.only in m.rule]
    module = registry.load(ALLOCATOR).module
    try:
        for mutation in rules:
            mutation.bindings(module)
    except ValueError as error:
        print(f"benchmarks.twin.verify.mutations: {error}", file=sys.stderr)
        return 1
    # Compiled here once: the others need only what a rule changes.
    plain = Runner(Plan(ALLOCATOR, 1, 1, count_branches=False, shrink_seconds=0))
    if finding := plain.program(next(iter(MODES)), 0, 1000).finding:
        print(f"benchmarks.twin.verify.mutations: no rule is broken, and yet: {finding.what}")
        return 1
    missed = 0
    seconds = _SHRINK if options.store else 0
    with ThreadPoolExecutor(options.jobs) as pool:
        hunts = pool.map(lambda m: _hunt_apart(m, options.programs, seconds), rules)
        try:
            for mutation, found in zip(rules, hunts, strict=True):
                missed += found.finding is None
                print(_told(mutation, found), flush=True)
                if options.store and found.finding:
                    options.store.mkdir(parents=True, exist_ok=True)
                    keep(mutation.path(options.store), found.finding)
        except EOFError:
            print("benchmarks.twin.verify.mutations: a process has ended", file=sys.stderr)
            return 1
    print(f"{len(rules) - missed} of {len(rules)} broken rules noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
