"""Read a plain log of strace: ``strace -f -y -e trace=%memory,%process,%ipc,io_setup,…``.

With or without process ids, timestamps, ``-o``, ``-T``, ``-y``.  A call that strace printed in two
parts (``<unfinished ...>``, ``resumed``) lasted from the one line to the other; a whole line is a
call during which no other thread was seen to do anything.
"""

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

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

_CLONES = {"clone", "clone2", "clone3", "fork", "vfork"}


def _split(text: str) -> tuple[list[str], str]:
    """Arguments of a call, from behind its parenthesis on, and what follows the closing one.

    Raises ValueError when it is not closed.
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
            end = text.find(">", i)  # the file of a descriptor: strace escapes its angle brackets
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
    raise ValueError("the call is not complete")


def _number(text: str) -> int:
    """The value of one argument: a number, a name, or several joined by bars.

    Raises ValueError for a name that is not known.
    """
    total = 0
    for term in _COMMENT.sub("", text).split("|"):
        total |= _term(term.strip())
    return total - (1 << 64) if total >= 1 << 63 else total


def _term(text: str) -> int:
    if "<<" in text:
        left, right = text.split("<<", 1)
        return _term(left.strip()) << _term(right.strip())
    if "*" in text:
        left, right = text.split("*", 1)
        return _term(left.strip()) * _term(right.strip())
    if text in table.CONSTANTS:
        return table.CONSTANTS[text]
    if text == "MAP_HUGE_SHIFT":
        return 26
    if text.startswith(("MAP_", "MADV_", "PROT_", "MREMAP_", "SHM_", "MPOL_")):
        raise ValueError(f"unknown constant {text}")
    try:
        if re.fullmatch(r"-?0[0-7]+", text):
            return int(text, 8)
        return int(text, 0)
    except ValueError:
        return 0  # a pointer to something printed in full, or a name that does not matter here


def _file_of(text: str) -> tuple[int, FileInfo | None]:
    """A descriptor and, where -y told, the file that it names."""
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
    """Turns lines into events."""

    log: Log
    made: set[int]  # every child that some clone of the log returned
    root: int | None = None
    alive: set[int] = field(default_factory=set)
    unfinished: dict[int, tuple[int, str, str]] = field(default_factory=dict)
    formers: dict[int, int] = field(default_factory=dict)  # who is about to take over an id
    segments: dict[int, int] = field(default_factory=dict)  # bytes by id of shared memory
    has_execs: bool = False
    fragment: str = ""  # of a line that goes on in the next one

    def line(self, number: int, text: str) -> None:
        """Take in one line.  Raises ValueError for what is none of strace's."""
        text = self.fragment + text.rstrip("\n")
        self.fragment = ""
        attached = _ATTACHED.fullmatch(text)
        if attached:
            # A message of strace's own may cut a line in two.
            self.made.add(int(attached[2]))
            self.fragment = attached[1]
            return
        if not text.strip() or text.startswith(("strace: ", " > ")):
            return
        match = _LINE.match(text)
        assert match is not None
        rest = match["rest"]
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
                # The first thread's id goes to the one whose exec ended all others.
                self.unfinished[tid] = self.unfinished.pop(caller)
                self.formers[tid] = caller
                self.alive.discard(caller)
                return
            self.alive.discard(tid)
            self.log.events.append(Exit(line=number, tid=tid, entry=2 * number, exit=2 * number))
            return
        resumed = _RESUMED.match(rest)
        if resumed:
            if tid not in self.unfinished or self.unfinished[tid][1] != resumed[1]:
                raise ValueError(f"{resumed[1]} resumes without its beginning")
            begun, name, head = self.unfinished.pop(tid)
            self._call(begun, number, tid, name, f"{head} {resumed[2].lstrip()}")
            return
        call = _CALL.match(rest)
        if call is None:
            raise ValueError(f"not a line of strace: {rest[:60]}")
        body = rest[call.end() :]
        if body.rstrip().endswith(_UNFINISHED):
            head = body.rstrip().removesuffix(_UNFINISHED)
            self.unfinished[tid] = number, call[1], head
            return
        self._call(number, number, tid, call[1], body)

    def end(self) -> None:
        """The log is over: calls still under way never returned."""
        for tid in list(self.unfinished):
            self._abandon(tid)

    def _thread(self, pid: int | None) -> int:
        """The thread that a line belongs to; strace leaves the id out while there is but one."""
        if pid is None:
            if len(self.alive) == 1:
                return next(iter(self.alive))
            pid = 0 if self.root is None else self.root
        if self.root is None and pid not in self.made:
            self.root = pid
        elif self.root == 0 and pid and pid not in self.made:
            self._rename_root(pid)
        self.alive.add(pid)
        return pid

    def _rename_root(self, pid: int) -> None:
        """The first process, nameless until now, is ``pid``."""
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
        """One whole call, from its line to the line of its return (NEVER: it did not)."""
        args, tail = _split(body)
        found = _RESULT.search(tail)
        if found is None:
            raise ValueError(f"{name} has no result")
        value, code = found[1], found[2]
        if code and code.startswith("ERESTART"):
            return  # it will be made again
        result: int | None
        if value == "?":
            result = None
        elif code and value == "-1":
            if not hasattr(errno, code):
                raise ValueError(f"unknown error {code}")
            result = -getattr(errno, code)
        else:
            result = int(value, 0)
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
        former = self.formers.pop(base["tid"], base["tid"])
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
    """Every process that a clone of the log returned: strace may show its lines before that."""
    made = set()
    pattern = re.compile(r"\b(?:clone3?|v?fork)(?:\(| resumed>).*=\s(\d+)(?:<[^>]*>)?(?:\s|$)")
    for _, text in lines:
        match = pattern.search(text)
        if match:
            made.add(int(match[1]))
    return made


def read_strace(path: Path) -> Log:
    """Read a log of strace.  Raises LogError, with the line, for what is not one."""
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
    if last is not None and (last[0] == 1 or "not complete" not in str(last[1])):
        raise LogError(f"{path}: line {last[0]}: {last[1]}")
    if last is not None:
        log.complete = False
        log.notes.append(f"line {last[0]}, the last, is cut short and left out")
    reader.end()
    if not any(isinstance(event, Call) for event in log.events):
        raise LogError(f"{path}: no call on memory in it")
    if not reader.has_execs:
        log.notes.append("no execve in the log: it is taken as one process, from its start on")
    return log
