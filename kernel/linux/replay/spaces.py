"""Assign each call of a log to its address space by following clones, execs and exits.

A clone with CLONE_VM joins its parent's space (a thread, or a vfork's child until its exec or
exit).  A clone without it starts a space that is a copy of the parent's at that moment.  An exec
starts a new space.  Nothing is replayed here: a :class:`Space` only lists the calls made in it.
"""

from dataclasses import dataclass, field, replace
from typing import Self

from kernel.linux.replay.log import (
    NEVER,
    Call,
    Clone,
    Event,
    Exec,
    Exit,
    Image,
    Limits,
    Log,
    LogError,
    SetLimit,
    Snapshot,
)
from kernel.linux.replay.table import ADDR_NO_RANDOMIZE, CLONE_THREAD, CLONE_VM
from kernel.uapi import RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK

_LIMIT_FIELDS = {
    RLIMIT_AS: "address_space",
    RLIMIT_DATA: "data",
    RLIMIT_MEMLOCK: "memlock",
}


@dataclass(slots=True)
class Step:
    """Call made in a space, or a fork that copied the space."""

    event: Call | Clone
    limits: Limits  # of the calling process
    child: "Space | None" = None  # a fork's copy; None for a call

    @property
    def entry(self) -> int:
        """Earliest time at which it may have taken effect."""
        return self.event.entry

    @property
    def exit(self) -> int:
        """Latest time at which it may have taken effect; NEVER if it did not return."""
        return self.event.exit


@dataclass(slots=True)
class Space:
    """One address space from its beginning to its end."""

    number: int
    pid: int  # the process that started it
    name: str
    exec: Exec | None = None  # the exec that started it
    parent: "Space | None" = None  # the space that it is a copy of
    steps: list[Step] = field(default_factory=list)
    final: Snapshot | None = None
    final_line: int = 0
    threads: set[int] = field(default_factory=set)  # tids that use it now
    ended: bool = False

    @property
    def image(self) -> Image | None:
        """Program that runs in the space; None if the log does not show an exec."""
        if self.parent is not None:
            return self.parent.image
        return self.exec.image if self.exec else None

    @property
    def randomised(self) -> bool:
        """True unless the space is known to have no address randomisation."""
        return self.image is None or not self.image.personality & ADDR_NO_RANDOMIZE


@dataclass(slots=True)
class _Process:
    """State other than memory that the threads of one process share."""

    pid: int
    limits: Limits


@dataclass(slots=True)
class _Task:
    """Thread: its process and its address space."""

    process: _Process
    space: Space


@dataclass
class _Follower:
    """State of one pass over a log: its spaces, and the task of each live thread."""

    log: Log
    spaces: list[Space] = field(default_factory=list)
    tasks: dict[int, _Task] = field(default_factory=dict)

    def follow(self) -> Self:
        """Assign every event to its space."""
        # A child's lines may come before the line that shows the return of its parent's clone.
        for event in sorted(self.log.events, key=self._time):
            task = self.tasks.get(event.tid)
            if isinstance(event, Exec):  # a thread that calls exec takes the first thread's id
                task = self.tasks.get(event.former, task)
            if task is None:
                if isinstance(event, Exit):
                    continue  # the thread has already been ended by an exec
                task = self._first_task(event)
            if isinstance(event, Call):
                task.space.steps.append(Step(event, task.process.limits))
            elif isinstance(event, Clone):
                self._clone(event, task)
            elif isinstance(event, Exec):
                self._exec(event, task)
            elif isinstance(event, SetLimit):
                self._limit(event, task)
            elif isinstance(event, Exit):
                self._leave(event.tid)
                if not task.space.threads:
                    task.space.final = event.snapshot
                    task.space.final_line = event.line
        return self

    def _time(self, event: Event) -> tuple[int, int]:
        if isinstance(event, (Exec, SetLimit)):
            return event.exit, 0
        return event.entry, 0 if isinstance(event, Clone) else 1

    def _space(self, pid: int, name: str) -> Space:
        space = Space(len(self.spaces) + 1, pid, name)
        self.spaces.append(space)
        return space

    def _first_task(self, event: Event) -> _Task:
        """Create the task of the log's first thread, the only one that needs no clone.

        Raises LogError if the log already has a thread.
        """
        if self.tasks or self.spaces:
            raise LogError(
                f"{self.log.path}: line {event.line}: no clone in the log created process "
                f"{event.tid}; run strace with trace=%memory,%process"
            )
        space = self._space(event.tid, "program")
        space.threads.add(event.tid)
        task = self.tasks[event.tid] = _Task(_Process(event.tid, Limits()), space)
        return task

    def _leave(self, tid: int) -> None:
        task = self.tasks.pop(tid)
        task.space.threads.discard(tid)
        task.space.ended = not task.space.threads

    def _clone(self, event: Clone, task: _Task) -> None:
        if event.flags & CLONE_VM:
            space = task.space
        else:
            space = self._space(event.child, task.space.name)
            space.parent = task.space
            task.space.steps.append(Step(event, task.process.limits, space))
        process = task.process
        if not event.flags & CLONE_THREAD:
            process = _Process(event.child, process.limits)
        if event.child in self.tasks:
            self._leave(event.child)  # the id is reused; the end of its first use is not logged
        self.tasks[event.child] = _Task(process, space)
        space.threads.add(event.child)

    def _exec(self, event: Exec, task: _Task) -> None:
        process = task.process
        old = task.space
        fresh = not old.steps and old.exec is None and old.parent is None
        for tid in [tid for tid, other in self.tasks.items() if other.process is process]:
            self._leave(tid)
        if old.ended and event.before is not None:
            old.final, old.final_line = event.before, event.line
        if fresh and old.ended:
            self.spaces.remove(old)  # the log shows nothing of it except this exec
        image = event.image
        space = self._space(event.tid, image.path if image else "program")
        space.exec = event
        if image is not None and self.log.kind == "recording":
            process.limits = image.limits
        self.tasks[event.tid] = _Task(process, space)
        space.threads.add(event.tid)

    def _limit(self, event: SetLimit, task: _Task) -> None:
        name = _LIMIT_FIELDS.get(event.resource)
        if name is None:
            return
        process = task.process
        if event.target not in (0, process.pid):
            target = self.tasks.get(event.target)
            if target is None:
                return
            process = target.process
        process.limits = replace(process.limits, **{name: event.soft})


def follow(log: Log) -> list[Space]:
    """Return the address spaces of a log in the order of their start, parents before copies.

    The steps of each space are sorted by entry.  The exit of a fork is lowered to the entry of its
    child's first call, because the fork must have happened before it.  Raises LogError for a
    process that no clone created.
    """
    spaces = _Follower(log).follow().spaces
    first_entry: dict[int, int] = {}
    for space in spaces:
        starts = [space.steps[0].entry] if space.steps else []
        first_entry[space.number] = min(starts, default=NEVER)
    for space in spaces:
        for step in space.steps:
            if step.child is not None:
                step.event.exit = min(step.event.exit, first_entry[step.child.number])
        space.steps.sort(key=lambda step: step.entry)
    for number, space in enumerate(spaces, 1):
        space.number = number
    return spaces
