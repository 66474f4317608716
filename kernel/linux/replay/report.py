"""Report the result of a replay as text or JSON."""

import errno
from collections import Counter
from typing import Any

from kernel.linux.replay import areas, table
from kernel.linux.replay.log import Call
from kernel.linux.replay.model import SavedState
from kernel.linux.replay.run import ANCHOR, LogResult, SpaceResult
from kernel.linux.replay.search import CallDifference

#: Number of arguments to show by call; other calls are shown with three.
_ARITY = {"mmap": 6, "munmap": 2, "brk": 1, "mremap": 5, "mlock": 2, "munlock": 2, "shmdt": 1}
#: Prefix of the names of an argument's bits, by call and index of the argument.
_BITS = {
    ("mmap", 2): "PROT_",
    ("mmap", 3): "MAP_",
    ("mprotect", 2): "PROT_",
    ("pkey_mprotect", 2): "PROT_",
    ("mremap", 3): "MREMAP_",
}
#: Number of areas shown on each side of a difference.
_AREAS_AROUND = 3


def percent(part: int, whole: int) -> float:
    """Return ``part`` in percent of ``whole``; 0 if ``whole`` is 0."""
    return 100 * part / whole if whole else 0.0


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


# --- one call ------------------------------------------------------------------------------------


def _bits(value: int, prefix: str) -> str:
    """Format a mask with the names of its bits."""
    if prefix == "PROT_" and value == 0:
        return "PROT_NONE"
    names = []
    rest = value
    for name, bit in table.CONSTANTS.items():
        single = bit and bit & (bit - 1) == 0
        if name.startswith(prefix) and single and rest & bit:
            names.append(name)
            rest &= ~bit
    if rest or not names:
        names.append(hex(rest))
    return "|".join(names)


def _advice(value: int) -> str:
    for name, number in table.CONSTANTS.items():
        if name.startswith("MADV_") and number == value:
            return name
    return str(value)


def show_result(value: int | None, name: str) -> str:
    """Format the result of the call ``name`` as strace does."""
    if value is None:
        return "?"
    if -4096 < value < 0:
        return f"-1 {errno.errorcode.get(-value, -value)}"
    return hex(value) if name in ("mmap", "mremap", "brk", "shmat") else str(value)


def show_call(call: Call) -> str:
    """Format a call as strace does, without its result."""
    shown = []
    for i, value in enumerate(call.args[: _ARITY.get(call.name, 3)]):
        prefix = _BITS.get((call.name, i))
        if prefix:
            shown.append(_bits(value, prefix))
        elif call.name == "madvise" and i == 2:
            shown.append(_advice(value))
        elif call.name == "mmap" and i == 4:
            fd = (value & 0xFFFFFFFF ^ 1 << 31) - (1 << 31)
            path = f"<{call.file.path}>" if call.file else ""
            shown.append(f"{fd}{path}")
        else:
            is_address = i == 0 or value > 1 << 32 or (call.name, i) == ("mmap", 5)
            shown.append(hex(value) if is_address else str(value))
    return f"{call.name}({', '.join(shown)})"


# --- a difference --------------------------------------------------------------------------------


def _around(state: SavedState, result: SpaceResult, places: list[int]) -> list[str]:
    """Return lines for the areas next to the addresses ``places``, with "…" for omitted areas."""
    views = areas.model_views(state, result.names, result.start_stack)
    wanted: set[int] = set()
    for place in places:
        at = next((i for i, view in enumerate(views) if view.end > place), len(views))
        wanted.update(range(max(0, at - _AREAS_AROUND), min(len(views), at + _AREAS_AROUND)))
    lines = []
    last = -1
    for i in sorted(wanted):
        if i != last + 1:
            lines.append("…")
        lines.append(str(views[i]))
        last = i
    return lines


def _explain_call(result: SpaceResult, difference: CallDifference) -> list[str]:
    call = difference.op.call
    name, expected, got = call.name, call.result or 0, difference.got
    places = [x for x in (expected, got) if x > 4096] or [call.args[0]]
    linux, model = show_result(expected, name), show_result(got, name)
    lines = [
        f"line {call.line}, process {call.tid}, {result.space.name}:",
        f"  {show_call(call)}",
        f"  Linux returned {linux}, the model {model}",
    ]
    if difference.tried > 1 and result.outcome.overlaps:
        lines.append("  no order of the overlapping calls gives Linux's result")
    before = _around(difference.before, result, places)
    lines += ["  areas of the model before:", *(f"    {line}" for line in before)]
    afterwards = (
        ("with Linux's result", difference.after_linux),
        ("with the model's result", difference.after_model),
    )
    for title, state in afterwards:
        after = _around(state, result, places)
        lines.append(f"  areas after, {title}:")
        lines += [f"    {line}" for line in after] if after != before else ["    unchanged"]
    return lines


def _explain_snapshot(result: SpaceResult) -> list[str]:
    comparison = result.comparison
    assert comparison is not None
    assert comparison.difference is not None
    difference = comparison.difference
    lines = [
        f"line {comparison.line}, end of process {result.space.pid}, {result.space.name}:",
        f"  {difference.message}",
    ]
    if difference.real or difference.model:
        lines += ["  Linux:", *(f"    {line}" for line in difference.real)]
        lines += ["  the model:", *(f"    {line}" for line in difference.model)]
    return lines


def explain_first(result: LogResult) -> list[str]:
    """Return lines that explain the first difference; an empty list if there is none."""
    found = [
        (difference.op.call.line, space, difference)
        for space in result.spaces
        for difference in space.outcome.differences
    ]
    if found:
        _, space, difference = min(found, key=lambda item: item[0])
        return _explain_call(space, difference)
    for space in result.spaces:
        if space.snapshot_differs:
            return _explain_snapshot(space)
    return []


# --- the whole log -------------------------------------------------------------------------------


def _space_line(space: SpaceResult) -> str:
    parts = [f"{space.calls} calls", f"{space.differ} differ"]
    if space.not_comparable:
        parts.append(f"{space.not_comparable} not comparable")
    if space.comparison is None:
        parts.append(f"no maps at the end: {space.no_comparison}")
    else:
        verdict = "differ" if space.snapshot_differs else "agree"
        size = space.comparison.sizes.get("VmSize")
        what = f"{space.comparison.areas} areas"
        parts.append(f"{what} and VmSize {size[0]} kB {verdict}" if size else f"{what} {verdict}")
        if space.comparison.page_tables:
            real, least, most = space.comparison.page_tables
            parts.append(f"page tables {real} kB, possible {least} to {most} kB")
    return f"  process {space.space.pid}, {space.space.name}: {'; '.join(parts)}"


def _skipped(result: LogResult) -> Counter[str]:
    reasons: Counter[str] = Counter()
    for space in result.spaces:
        reasons.update(space.skipped)
    return reasons


def summary(result: LogResult) -> str:
    """Return the last line of the report."""
    calls = result.total(lambda s: s.calls)
    compared = result.total(lambda s: s.compared)
    differ = result.total(lambda s: s.differ)
    left = result.total(lambda s: s.not_comparable)
    anchors = result.total(lambda s: s.anchors)
    given = f", {anchors} taken as given" if anchors else ""
    share = percent(left, calls)
    return (
        f"{_count(calls, 'call')}: {compared} compared, {differ} differ, "
        f"{left} not comparable ({share:.1f} %){given}"
    )


def _snapshots(result: LogResult) -> list[str]:
    compared = [s.comparison for s in result.spaces if s.comparison is not None]
    lines = []
    if compared:
        differ = sum(c.difference is not None for c in compared)
        areas_seen = sum(c.areas for c in compared)
        ignored = sum(c.ignored_boundaries for c in compared)
        lines.append(
            f"maps at the end: {len(compared)} compared ({areas_seen} areas, VmSize, VmData, "
            f"VmLck), {differ} differ"
        )
        tables = [c.page_tables for c in compared if c.page_tables]
        if tables:
            real, least, most = (sum(column) for column in zip(*tables, strict=True))
            lines.append(
                f"  page tables: {real} kB, possible {least} to {most} kB (by touched pages)"
            )
        if ignored:
            what = "1 boundary" if ignored == 1 else f"{ignored} boundaries"
            lines.append(
                f"  {what} between equal areas ignored: "
                "a log cannot show why Linux did not merge them"
            )
    else:
        lines.append("maps at the end: not compared")
    missing = Counter(s.no_comparison for s in result.spaces if s.comparison is None and s.calls)
    lines += [f"  none for {count}: {reason}" for reason, count in missing.items()]
    return lines


def text(result: LogResult, *, verbose: bool = False) -> str:
    """Return the whole report as text."""
    log = result.log
    lines = [f"note: {note}" for note in log.notes]
    if verbose:
        lines += [_space_line(space) for space in result.spaces if space.calls or space.comparison]
        for space in result.spaces:
            lines += [
                f"  line {op.call.line}: {show_call(op.call)}: {op.reason}"
                for op in space.ops
                if op.step.child is None and op.reason
            ]
    lines += sorted({note for space in result.spaces for note in space.notes})
    explained = explain_first(result)
    if explained:
        lines += ["first difference:", *(f"  {line}" for line in explained)]
    programs = sum(space.space.exec is not None for space in result.spaces)
    copies = sum(space.space.parent is not None for space in result.spaces)
    lines.append(f"{_count(programs, 'program')} started, {copies} copied by fork")
    lines += _snapshots(result)
    overlaps = result.total(lambda s: s.outcome.overlaps)
    if overlaps:
        reordered = result.total(lambda s: s.outcome.reordered)
        lines.append(
            f"overlapping calls: {_count(overlaps, 'point')} with several possible orders, "
            f"{_count(reordered, 'call')} not in the order of return"
        )
    anchors = result.total(lambda s: s.anchors)
    if anchors:
        lines.append(f"{anchors} {ANCHOR}")
    lines += [f"{count} not comparable: {why}" for why, count in _skipped(result).most_common()]
    if log.others:
        others = ", ".join(f"{name} {count}" for name, count in sorted(log.others.items()))
        lines.append(f"lines other than memory calls: {others}")
    lines.append(summary(result))
    return "\n".join(lines)


def _space_json(space: SpaceResult) -> dict[str, Any]:
    """Return the JSON record of one address space; sizes in kB."""
    record: dict[str, Any] = {
        "pid": space.space.pid,
        "program": space.space.name,
        "copy_of": space.space.parent.pid if space.space.parent else None,
        "calls": space.calls,
        "compared": space.compared,
        "differ": space.differ,
        "anchors": space.anchors,
        "not_comparable": dict(space.skipped),
        "differences": [
            {
                "line": difference.op.call.line,
                "tid": difference.op.call.tid,
                "call": show_call(difference.op.call),
                "expected": difference.op.call.result,
                "got": difference.got,
            }
            for difference in space.outcome.differences
        ],
        "maps": None,
        "notes": space.notes,
    }
    found = space.comparison
    if found is not None:
        record["maps"] = {
            "line": found.line,
            "areas": found.areas,
            "ignored_boundaries": found.ignored_boundaries,
            "stack_growth": found.stack_growth,
            "sizes": {k: {"linux": a, "model": b} for k, (a, b) in found.sizes.items()},
            "page_tables": found.page_tables
            and dict(zip(("linux", "least", "most"), found.page_tables, strict=True)),
            "difference": found.difference and found.difference.message,
        }
    else:
        record["no_maps"] = space.no_comparison
    return record


def as_json(result: LogResult) -> dict[str, Any]:
    """Return the report as a JSON object; sizes in kB."""
    calls = result.total(lambda s: s.calls)
    left = result.total(lambda s: s.not_comparable)
    return {
        "file": result.log.path,
        "kind": result.log.kind,
        "command": result.log.command,
        "complete": result.log.complete,
        "notes": result.log.notes,
        "calls": calls,
        "compared": result.total(lambda s: s.compared),
        "differ": result.total(lambda s: s.differ),
        "maps_differ": sum(s.snapshot_differs for s in result.spaces),
        "not_comparable": left,
        "not_comparable_percent": round(percent(left, calls), 2),
        "anchors": result.total(lambda s: s.anchors),
        "reasons": dict(_skipped(result)),
        "not_comparable_lines": [
            {"line": op.call.line, "call": op.call.name, "reason": op.reason}
            for space in result.spaces
            for op in space.ops
            if op.step.child is None and op.reason
        ],
        "other_lines": result.log.others,
        "spaces": [_space_json(space) for space in result.spaces],
    }
