"""Read a plain strace log: ``strace -f -y -e trace=%memory,%process,%ipc,io_setup,…``.

Process ids, timestamps and the options ``-o``, ``-T`` and ``-y`` are optional.  A call that strace
printed in two parts (``<unfinished ...>``, ``resumed``) lasts from its first line to its second.  A
call on one line overlaps no other call except those that were unfinished at that line.
"""

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kernel.engine.foreign import WIDTH, printable
from kernel.linux.replay import table
from kernel.linux.replay.log import (
    NEVER,
    Call,
    Clone,
    Exec,
    Exit,
    FileInfo,
    Image,
    Log,
    LogError,
    SetLimit,
)
from kernel.linux.replay.recording import lines_of, open_text

_LINE = re.compile(
    r"""
    \s*
    (?: \[pid\s+(?P<bracketed>\d+)(?:<[^>]*>)?\]\s+ | (?P<bare>\d{1,7})(?:<[^>]*>)?\s+ )?
    (?: \d\d:\d\d:\d\d(?:\.\d+)?\s+ | \(\+\s*[\d.]+\)\s+ | \d+\.\d+\s+ | \d{8,}\s+ )*
    (?: \[\s*[0-9a-f?]+\]\s+ )*
    (?P<rest>.*)
    """,
    re.X,
)
_CALL = re.compile(r"([a-z_][a-z0-9_]*)\(")
_RESUMED = re.compile(r"<\.\.\. (\w+) resumed>(.*)")
_UNFINISHED = "<unfinished ...>"
_ATTACHED = re.compile(r"(.*?)(?:strace: )?Process (\d+) attached")
_ENDED = re.compile(r"\+\+\+ (?:exited with|killed by|superseded by execve in pid (\d+)).*\+\+\+")
_RESULT = re.compile(r"=\s+(\?|0x[0-9a-f]+|-?\d+)(?:<[^>]*>)?(?:\s+([A-Z][A-Z0-9]+)\b)?")
_FD = re.compile(r"(-?\d+)(?:<(.*)>(?:\(deleted\))?)?", re.S)
_FIELD = re.compile(r"\b(\w+)=([^,{}\[\]]+)")
_COMMENT = re.compile(r"/\*.*?\*/")
_OPENING, _CLOSING = "([{", ")]}"

#: The rest of a call whose line the program's own output cut in two.
_REST = re.compile(r"\)\s+= ")
#: A line that is whole, so that it cannot continue the one before.
_OWN = re.compile(r"[a-z_][a-z0-9_]*\(.*(?:\)\s+= |<unfinished)|\+\+\+|---|<\.\.\. ")

_CLONES = {"clone", "clone2", "clone3", "fork", "vfork"}
#: Calls that the replay needs.
_FOLLOWED = {*table.NUMBERS, *_CLONES, "execve", "execveat", "prlimit64", "setrlimit"}


class _IncompleteError(ValueError):
    """Call that ends before its closing parenthesis."""


def _split(text: str) -> tuple[list[str], str]:
    """Split the text after a call's opening parenthesis into its arguments and the remainder.

    The remainder begins after the closing parenthesis.  Raises ValueError if there is none.
    """
    parts: list[str] = []
    start = depth = i = 0
    while i < len(text):
        c = text[i]
        if c == '"':
            i = text.find('"', i + 1)
            while i > 0 and (len(text[:i]) - len(text[:i].rstrip("\\"))) % 2:
                i = text.find('"', i + 1)
            if i < 0:
                break
        elif c == "<" and text[:i].rstrip()[-1:].isdigit() and text[i + 1 : i + 2] != "<":
            end = text.find(">", i)  # a descriptor's file, in which strace escapes angle brackets
            if end < 0:
                break
            i = end
        elif c == "/" and text.startswith("/*", i):
            i = text.find("*/", i)
            if i < 0:
                break
        elif c in _OPENING:
            depth += 1
        elif c in _CLOSING and depth:
            depth -= 1
        elif c == ")" or (c == "," and not depth):
            parts.append(text[start:i].strip())
            start = i + 1
            if c == ")":
                whole = (part.removesuffix(_UNFINISHED).rstrip() for part in parts)
                return [part for part in whole if part], text[start:]
        i += 1
    raise _IncompleteError(
        "the call is not complete; strace -o FILE keeps the program's output out"
    )


def _number(text: str) -> int:
    """Return the value of one argument: a number, a constant, or several joined by ``|``.

    Raises ValueError for an unknown constant.
    """
    total = 0
    for term in _COMMENT.sub("", text).split("|"):
        total |= _term(term.strip())
    if not -(1 << 63) <= total < 1 << 64:
        raise ValueError("a number has more than 64 bits")
    return total - (1 << 64) if total >= 1 << 63 else total


def _term(text: str) -> int:
    if "<<" in text:
        left, right = text.split("<<", 1)
        return _term(left.strip()) << min(_term(right.strip()), 64)
    if "*" in text:
        left, right = text.split("*", 1)
        return _term(left.strip()) * _term(right.strip())
    if text in table.CONSTANTS:
        return table.CONSTANTS[text]
    if text == "MAP_HUGE_SHIFT":
        return 26
    if text.startswith(("MAP_", "MADV_", "PROT_", "MREMAP_", "SHM_", "MPOL_")):
        raise ValueError(f"unknown constant {printable(text, WIDTH)}")
    try:
        if re.fullmatch(r"-?0[0-7]+", text):
            return int(text, 8)
        return int(text, 0)
    except ValueError:
        return 0  # pointed-to data that strace printed instead of a pointer, or an unused constant


def _file_of(text: str) -> tuple[int, FileInfo | None]:
    """Parse a descriptor and, if ``-y`` printed it, the file that it names."""
    match = _FD.fullmatch(text.strip())
    if match is None:
        return -1, None
    path = match[2]
    if path is None:
        return int(match[1]), None
    path = re.sub(r"<char \d+:\d+>$", "", path).removesuffix(" (deleted)")
    file = FileInfo(path=path)
    if path.startswith(("/memfd:", "/dev/shm/", "/SYSV")):
        file.file_system = "tmpfs"
    elif path.startswith("/dev/"):
        file.kind = "device"
    elif not path.startswith("/"):
        file.kind = "other"
    return int(match[1]), file


@dataclass
class _Reader:
    """Parser that turns lines into events."""

    log: Log
    children: set[int]  # ids returned by the clones of the log
    root: int | None = None  # the first process; 0 until its id is known
    alive: set[int] = field(default_factory=set)
    # by thread: line, name and first part of its call
    unfinished: dict[int, tuple[int, str, str]] = field(default_factory=dict)
    exec_callers: dict[int, int] = field(default_factory=dict)  # by process: thread in exec
    segments: dict[int, int] = field(default_factory=dict)  # bytes by id of shared memory
    has_execs: bool = False
    fragment: str = ""  # start of a line that continues in the next one
    broken: tuple[int, str] | None = None  # number and text of a line that is not complete

    def line(self, number: int, text: str) -> None:
        """Parse one line, or the start of one that the program's own output cut in two.

        Raises ValueError for a line that strace does not print, LogError for one before it.
        """
        if self.broken is not None:
            begun, head = self.broken
            match = _LINE.match(text)
            if match is not None and _OWN.match(match["rest"]):
                self.lost()
            else:
                number, text = begun, head + text
        self.broken = None
        try:
            self._line(number, text)
        except _IncompleteError:
            self.broken = number, text.rstrip("\n")

    def lost(self) -> None:
        """Count an incomplete line before a whole one; raise LogError if it is a memory call."""
        begun, head = self.broken or (0, "")
        name = re.search(r"([a-z_][a-z0-9_]*)\(", head)
        if name is None or name[1] in _FOLLOWED:
            try:
                _split(head.partition("(")[2])
            except ValueError as error:
                raise LogError(f"{self.log.path}: line {begun}: {error}") from None
        self._other(name[1] if name else "?")

    def _line(self, number: int, text: str) -> None:
        text = self.fragment + text.rstrip("\n")
        self.fragment = ""
        attached = _ATTACHED.fullmatch(text)
        if attached:
            # A message from strace itself may cut a line in two.
            self.children.add(int(attached[2]))
            self.fragment = attached[1]
            return
        if not text.strip() or text.startswith(("strace: ", " > ")):
            return
        match = _LINE.match(text)
        assert match is not None
        rest = match["rest"]
        if _REST.match(rest):
            self._other("ends of lines with the program's output")
            return
        pid = match["bracketed"] or match["bare"]
        tid = self._thread(int(pid) if pid else None)
        if rest.startswith("---"):
            self._other("signals")
            return
        ended = _ENDED.match(rest)
        if ended:
            self._abandon(tid)
            caller = int(ended[1]) if ended[1] else 0
            if caller in self.unfinished:
                # Exec ends all other threads; its caller takes over the first thread's id.
                self.unfinished[tid] = self.unfinished.pop(caller)
                self.exec_callers[tid] = caller
                self.alive.discard(caller)
                return
            self.alive.discard(tid)
            self.log.events.append(Exit(line=number, tid=tid, entry=2 * number, exit=2 * number))
            return
        resumed = _RESUMED.match(rest)
        if resumed:
            if tid not in self.unfinished or self.unfinished[tid][1] != resumed[1]:
                raise ValueError(f"{resumed[1]} resumed, but its unfinished line is missing")
            begun, name, head = self.unfinished.pop(tid)
            self._call(begun, number, tid, name, f"{head} {resumed[2].lstrip()}")
            return
        call = _CALL.match(rest)
        if call is None:
            raise ValueError(f"not an strace line: {printable(rest, WIDTH)}")
        body = rest[call.end() :]
        if body.rstrip().endswith(_UNFINISHED):
            head = body.rstrip().removesuffix(_UNFINISHED)
            self.unfinished[tid] = number, call[1], head
            return
        self._call(number, number, tid, call[1], body)

    def end(self) -> None:
        """Record the calls that are still unfinished at the end as ones that never returned."""
        for tid in list(self.unfinished):
            self._abandon(tid)

    def _thread(self, pid: int | None) -> int:
        """Return the thread of a line; strace omits the id while there is only one thread."""
        if pid is None:
            if len(self.alive) == 1:
                return next(iter(self.alive))
            pid = 0 if self.root is None else self.root
        if self.root is None and pid not in self.children:
            self.root = pid
        elif self.root == 0 and pid and pid not in self.children:
            self._rename_root(pid)
        self.alive.add(pid)
        return pid

    def _rename_root(self, pid: int) -> None:
        """Replace id 0, used for the first process until now, by ``pid``."""
        self.root = pid
        self.alive.discard(0)
        for event in self.log.events:
            event.tid = pid if event.tid == 0 else event.tid
            if isinstance(event, Exec) and event.former == 0:
                event.former = pid
        if 0 in self.unfinished:
            self.unfinished[pid] = self.unfinished.pop(0)

    def _other(self, name: str) -> None:
        self.log.others[name] = self.log.others.get(name, 0) + 1

    def _abandon(self, tid: int) -> None:
        if tid in self.unfinished:
            begun, name, head = self.unfinished.pop(tid)
            body = head.rstrip().rstrip(",") + ") = ?"
            try:
                self._call(begun, NEVER, tid, name, body)
            except ValueError:
                self._other(name)

    def _call(self, begun: int, ended: int, tid: int, name: str, body: str) -> None:
        """Add a whole call; ``begun`` and ``ended``: lines of its entry and exit (or NEVER)."""
        args, tail = _split(body)
        found = _RESULT.search(tail)
        if found is None:
            raise ValueError(f"{name} has no result")
        value, code = found[1], found[2]
        if code and code.startswith("ERESTART"):
            return  # the kernel restarts the call
        result: int | None
        if value == "?":
            result = None
        elif code and value == "-1":
            if not hasattr(errno, code):
                raise ValueError(f"unknown error {printable(code, WIDTH)}")
            result = -getattr(errno, code)
        else:
            result = _number(value)
        exit_ = NEVER if ended == NEVER or result is None else 2 * ended + 1
        base = {"line": begun, "tid": tid, "entry": 2 * begun, "exit": exit_}
        if name in table.NUMBERS:
            self._memory_call(base, name, args, result)
        elif name in _CLONES:
            self._clone(base, name, body, result)
        elif name in ("execve", "execveat"):
            self._exec(base, args, result)
        elif name in ("prlimit64", "setrlimit"):
            self._limit(base, name, args, result)
        else:
            if name == "shmget" and result is not None and result >= 0:
                self.segments[result] = _number(args[1])
            self._other(name)

    def _memory_call(self, base: dict, name: str, args: list[str], result: int | None) -> None:
        file = None
        extra: dict[str, int | str] = {}
        values = [0] * 6
        for i, text in enumerate(args[:6]):
            if name == "mmap" and i == 4:
                values[i], file = _file_of(text)
            else:
                values[i] = _number(text)
        if name == "shmat" and values[0] in self.segments:
            extra["size"] = self.segments[values[0]]
        if name == "mbind" and len(args) > 3:
            extra["nodes"] = args[3]
        if name == "io_setup" and result == 0:
            extra["context"] = _number(args[1].strip("[]"))
        self.log.events.append(
            Call(**base, name=name, args=tuple(values), result=result, file=file, extra=extra)
        )

    def _clone(self, base: dict, name: str, body: str, result: int | None) -> None:
        if result is None or result <= 0:
            self._other(f"failed {name}")
            return
        named = dict(_FIELD.findall(body))
        if name == "vfork":
            flags = table.CLONE_VM | table.CLONE_VFORK
        else:
            flags = _number(named.get("flags", "0"))
        self.log.events.append(Clone(**base, flags=flags, child=result))

    def _exec(self, base: dict, args: list[str], result: int | None) -> None:
        if result != 0:
            self._other("failed execve")
            return
        self.has_execs = True
        path = next((a.strip('"') for a in args if a.startswith('"')), "?")
        base["entry"] = base["exit"]
        former = self.exec_callers.pop(base["tid"], base["tid"])
        self.log.events.append(Exec(**base, former=former, image=Image(path)))

    def _limit(self, base: dict, name: str, args: list[str], result: int | None) -> None:
        values = args if name == "prlimit64" else ["0", *args]
        match = re.search(r"rlim_cur=([^,}]+)", values[2]) if len(values) > 2 else None
        if result != 0 or match is None:
            self._other(name)
            return
        soft = _number(match[1])
        target = _number(values[0])
        resource = _number(values[1])
        self.log.events.append(
            SetLimit(**base, target=target, resource=resource, soft=None if soft < 0 else soft)
        )


def _children(lines: Iterator[tuple[int, str]]) -> set[int]:
    """Return the ids of all processes that clones of the log returned.

    They must be known in advance: strace may print a child's lines before its parent's clone.
    """
    found = set()
    pattern = re.compile(r"\b(?:clone3?|v?fork)(?:\(| resumed>).*=\s(\d+)(?:<[^>]*>)?(?:\s|$)")
    for _, text in lines:
        match = pattern.search(text)
        if match:
            found.add(int(match[1]))
    return found


def read_strace(path: Path) -> Log:
    """Read an strace log.  Raises LogError, with the line, for a file that is not one."""
    log = Log(path=str(path), kind="strace")
    with open_text(path) as file:
        reader = _Reader(log, _children(lines_of(path, file)))
    with open_text(path) as file:
        last: tuple[int, ValueError] | None = None
        for number, text in lines_of(path, file):
            if last is not None:
                raise LogError(f"{path}: line {last[0]}: {last[1]}")
            try:
                reader.line(number, text)
            except ValueError as error:
                last = number, error
    if last is not None:
        raise LogError(f"{path}: line {last[0]}: {last[1]}")
    if reader.broken is not None:
        if reader.broken[0] == 1:
            raise LogError(f"{path}: line 1: the call is not complete")
        log.complete = False
        log.notes.append(f"line {reader.broken[0]}, the last, is incomplete and left out")
    reader.end()
    if not any(isinstance(event, Call) for event in log.events):
        raise LogError(f"{path}: no memory calls; run strace with -e trace=%memory,%process")
    if not reader.has_execs:
        log.notes.append("no execve in the log; assumed to show one process from its start")
    return log
