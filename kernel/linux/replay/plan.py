"""Turn each call of a log into calls of the model, or say why it cannot be compared.

A call becomes rows for the model (:mod:`kernel.linux.replay.model`).  There are several rows if the
log leaves open which of several calls it was for Linux; one must return the logged result.  A call
that is not modelled is not compared.  It has a reason instead and, if known, its effect on the
areas is applied.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from errno import EBUSY

from kernel import uapi
from kernel.linux.host.files import ALIGNING, NOT_ALIGNING
from kernel.linux.replay import table
from kernel.linux.replay.log import Call, FileInfo, Limits, MachineSettings
from kernel.linux.replay.model import (
    FAULTED_BY_USER,
    FIRST_FILE_ID,
    MERGEABLE,
    NAME,
    PKEY,
    POLICY,
    SEALED,
    ReplayModel,
    Row,
    model_limit,
)
from kernel.linux.replay.spaces import Space, Step
from kernel.types import VM_LOCKED, VM_LOCKONFAULT, VM_MAYEXEC, VM_MAYREAD, VM_MAYWRITE

PAGE = 4096
HUGE_PAGE = 2 << 20
#: Prefix of the names of System V shared memory segments.
SEGMENT = "/SYSV"

#: Errors of mmap that do not depend on a regular file.
_FILE_INDEPENDENT_ERRORS = {-uapi.EINVAL, -uapi.ENOMEM, -uapi.EEXIST}

#: Calls that are not modelled and do not change areas, with the reason to report.
_NO_EFFECT = {
    "get_mempolicy": "NUMA policies of processes are not modelled",
    "set_mempolicy": "NUMA policies of processes are not modelled",
    "migrate_pages": "NUMA policies of processes are not modelled",
    "move_pages": "NUMA policies of processes are not modelled",
    "process_madvise": "advice from another process is not modelled",
}
#: Calls that are not modelled and may split or create areas, with the reason to report.
_UNKNOWN_EFFECT = {
    "set_mempolicy_home_node": "home nodes of NUMA policies are not modelled",
    "remap_file_pages": "remap_file_pages is not modelled",
    "map_shadow_stack": "shadow stacks are not modelled",
}
#: Values of madvise(2) that are modelled.
_ADVICE = {0, 1, 2, 3, 4, 8, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24}
#: Other values that split no area: remove, collapse, poison, offline, guard pages.
_NON_SPLITTING_ADVICE = {table.MADV_REMOVE, 25, 100, 101, 102, 103}
#: Values that Linux knows but that are not modelled.
_UNMODELLED_ADVICE = {*_NON_SPLITTING_ADVICE, table.MADV_MERGEABLE, table.MADV_UNMERGEABLE}

#: Function that applies the effect of a call to the model and returns the result.
Emulate = Callable[[ReplayModel, Call], int]


@dataclass(slots=True)
class PlannedCall:
    """Step of a space with the calls of the model that replay it."""

    step: Step
    rows: list[Row] = field(default_factory=list)  # alternatives: one must return the logged result
    reason: str = ""  # why it is not compared; empty: compared
    emulate: Emulate | None = None  # replays the call instead of rows
    taints: str = ""  # why the areas at the end cannot be compared after it
    fallback_reason: str = ""  # reported as reason, not as a difference, if no order fits

    @property
    def compared(self) -> bool:
        """True if its result is compared with the model's."""
        return not self.reason and self.step.child is None

    @property
    def call(self) -> Call:
        """Logged call of a step that is not a fork."""
        assert isinstance(self.step.event, Call)
        return self.step.event


@dataclass
class Planner:
    """Converter of the steps of spaces into planned calls ("ops"); numbers files and attributes."""

    machine: MachineSettings
    limits_unknown: bool = False  # the log has neither resource limits nor machine settings
    file_ids: dict[tuple, int] = field(default_factory=dict)
    files: dict[int, FileInfo] = field(default_factory=dict)  # by file id
    policies: list[str] = field(default_factory=list)  # NUMA policies seen, from number 1 on
    labels: list[str] = field(default_factory=list)  # names given to areas, from number 1 on
    segments: dict[int, int] = field(default_factory=dict)  # bytes of a shared segment by file id
    rings: dict[tuple[int, int], int] = field(default_factory=dict)  # bytes by space and context

    def plan(self, space: Space) -> list[PlannedCall]:
        """Return the ops of a space in the order of its steps."""
        bits = space.image.bits if space.image else 64
        ops = []
        for step in space.steps:
            op = PlannedCall(step)
            if step.child is None:
                self._plan(op, space)
                if op.call.result is None and not op.reason:
                    op.reason = "the thread was ended inside the call"
                if self.limits_unknown and not op.reason and _refused(op.call):
                    op.fallback_reason = "memory was refused by a limit that is not in the log"
                if bits == 32:
                    op.reason, op.rows, op.emulate = "a 32-bit program", [], None
            ops.append(op)
        return ops

    def _plan(self, op: PlannedCall, space: Space) -> None:
        call = op.call
        handler = _HANDLERS.get(call.name)
        if handler is not None:
            handler(self, op, space)
        elif call.name in table.NUMBERS and call.name in _DIRECT_CALLS:
            op.rows = [self._row(op, table.NUMBERS[call.name], call.args)]
        elif call.name in _NO_EFFECT:
            op.reason = _NO_EFFECT[call.name]
        elif call.name in _UNKNOWN_EFFECT:
            op.reason = _UNKNOWN_EFFECT[call.name]
            if call.result is None or call.result >= 0:
                op.taints = op.reason
        else:
            op.reason = f"{call.name} is not modelled"
            op.taints = op.reason

    def _row(
        self,
        op: PlannedCall,
        number: int,
        args: tuple[int, ...],
        *,
        expected: int | None = None,
        file: tuple[int, int, int] = (0, 0, 0),
    ) -> Row:
        """Return a row for the call; ``file``: its id, VM_MAY* flags, 1 if it aligns to 2 MiB."""
        padded = (*args, 0, 0, 0, 0, 0, 0)[:6]
        if expected is None:
            expected = op.call.result or 0
        limits = op.step.limits
        # If the limits are unknown, a successful call shows that its process had the capability.
        may = limits.may_map_low or (self.limits_unknown and not -PAGE < expected < 0)
        lowest = 0 if may else self.machine.mmap_min_addr
        return (number, *padded, expected, *file, *_limits(limits), lowest)

    def _new_file(self, info: FileInfo) -> int:
        number = FIRST_FILE_ID + len(self.files)
        self.files[number] = info
        return number

    def file_id(self, info: FileInfo, fd: int) -> int:
        """Return the id of an open file, the same for the same descriptor of the same file."""
        key = (info.path, info.device, info.inode, fd)
        if key not in self.file_ids:
            self.file_ids[key] = self._new_file(info)
        return self.file_ids[key]

    # --- mmap ------------------------------------------------------------------------------------

    def _mmap(self, op: PlannedCall, space: Space) -> None:
        call = op.call
        addr, length, prot, flags, fd, offset = call.args
        fd = (fd & 0xFFFFFFFF ^ 1 << 31) - (1 << 31)
        result = call.result
        args = (addr, length, prot, flags, 0, offset)
        if flags & uapi.MAP_HUGETLB or (call.file and call.file.file_system == "hugetlbfs"):
            op.reason = "hugetlbfs pages are not modelled"
            if result is not None and result >= 0:
                op.taints = op.reason
                size = -(-length // HUGE_PAGE) * HUGE_PAGE
                fixed = uapi.MAP_FIXED | uapi.MAP_PRIVATE | uapi.MAP_ANONYMOUS | uapi.MAP_NORESERVE
                row = self._row(op, table.NUMBERS["mmap"], (result, size, prot, fixed, 0, 0))
                op.rows = [row]
            return
        if flags & uapi.MAP_32BIT and not flags & uapi.MAP_FIXED and space.randomised:
            op.reason = "MAP_32BIT searches from a random address"
            if result is not None and result >= 0:
                args = (result, length, prot, flags & ~uapi.MAP_32BIT | uapi.MAP_FIXED, 0, offset)
        if flags & uapi.MAP_ANONYMOUS:
            op.rows = [self._row(op, table.NUMBERS["mmap"], args)]
            return
        file = call.file
        if file is None:
            if result is None or result >= 0:
                file = FileInfo(path=f"descriptor {fd}")
            else:
                op.rows = [self._row(op, table.NUMBERS["mmap"], args)]
                return
        if result is not None and result < 0 and not self._is_modelled_error(op, file):
            op.reason = "the error depends on the file"
            return
        number = self.file_id(file, fd)
        may = _may_flags(file)
        op.rows = [
            self._row(op, table.NUMBERS["mmap"], args, file=(number, may, align))
            for align in self._alignments(file, length)
        ]

    def _is_modelled_error(self, op: PlannedCall, file: FileInfo) -> bool:
        """Return True if the model can predict the error from how the file was opened."""
        error = op.call.result
        if file.kind != "file" or file.file_system in ("anon_inodefs", "proc", "sysfs"):
            return False
        if error == -uapi.EACCES:
            return file.access is not None
        if error == -uapi.EPERM:
            return bool(file.no_exec and op.call.args[2] & uapi.PROT_EXEC)
        return error in _FILE_INDEPENDENT_ERRORS

    def _alignments(self, file: FileInfo, length: int) -> tuple[int, ...]:
        """Return 1 if the file's mappings align to 2 MiB, else 0; both if unknown and relevant."""
        if file.kind == "file" and file.file_system in ALIGNING:
            return (1,)
        if file.kind == "file" and file.file_system in NOT_ALIGNING:
            return (0,)
        return (1, 0) if length >= HUGE_PAGE else (0,)

    # --- other calls that map and unmap ----------------------------------------------------------

    def _shmat(self, op: PlannedCall, space: Space) -> None:
        call = op.call
        _, addr, flags = call.args[:3]
        flags &= 0xFFFFFFFF
        size = call.extra.get("size", 0)
        if call.result is None or call.result < 0:
            op.reason = "the error depends on the segment"
            return
        if not size:
            op.reason = "the size of the segment is not in the log"
            op.taints = op.reason
            return
        map_flags = uapi.MAP_SHARED
        if addr:
            map_flags |= uapi.MAP_FIXED if flags & table.SHM_REMAP else uapi.MAP_FIXED_NOREPLACE
            if flags & table.SHM_RND:
                addr &= -PAGE
        prot = uapi.PROT_READ if flags & table.SHM_RDONLY else uapi.PROT_READ | uapi.PROT_WRITE
        prot |= uapi.PROT_EXEC if flags & table.SHM_EXEC else 0
        number = self._new_file(FileInfo(path=SEGMENT, file_system="tmpfs"))
        self.segments[number] = size
        may = VM_MAYREAD | VM_MAYEXEC | (VM_MAYWRITE if prot & uapi.PROT_WRITE else 0)
        args = (addr, size, prot, map_flags, 0, 0)
        op.rows = [self._row(op, table.NUMBERS["mmap"], args, file=(number, may, 0))]

    def _shmdt(self, op: PlannedCall, space: Space) -> None:
        op.emulate = self._detach

    def _detach(self, model: ReplayModel, call: Call) -> int:
        """Emulate shmdt: unmap the rest of the segment that was attached at the address."""
        addr = call.args[0]
        if addr % PAGE:
            return -uapi.EINVAL
        for area in model.areas:
            size = self.segments.get(int(area["vm_file"]))
            start = int(area["vm_start"])
            if size is not None and start - addr == int(area["vm_pgoff"]) * PAGE >= 0:
                break
        else:
            return -uapi.EINVAL
        number, end = int(area["vm_file"]), addr + size
        mine = [
            (int(a["vm_start"]), int(a["vm_end"]))
            for a in model.areas
            if a["vm_file"] == number
            and a["vm_start"] - addr == int(a["vm_pgoff"]) * PAGE
            and a["vm_end"] <= end
        ]
        rest = (0, 0, 0, 0, 0, 0, 0, 0, *_limits(Limits()), 0)
        for low, high in mine:
            model.call((table.NUMBERS["munmap"], low, high - low, *rest))
        return 0

    def _io_setup(self, op: PlannedCall, space: Space) -> None:
        call = op.call
        context, size = call.extra.get("context", 0), call.extra.get("size", 0)
        if call.result != 0 or not context:
            op.reason = "limits of asynchronous I/O are not modelled"
            return
        if not size:
            op.reason = "the size of the ring is not in the log"
            op.taints = op.reason
            return
        self.rings[space.number, context] = size
        number = self._new_file(FileInfo(path="/[aio]"))
        may = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
        args = (0, size, uapi.PROT_READ | uapi.PROT_WRITE, uapi.MAP_SHARED, 0, 0)
        file = (number, may, 0)
        row = self._row(op, table.NUMBERS["mmap"], args, expected=context, file=file)
        op.rows = [row]

    def _io_destroy(self, op: PlannedCall, space: Space) -> None:
        context = op.call.args[0]
        size = self.rings.pop((space.number, context), 0)
        if op.call.result == 0 and size:
            op.rows = [self._row(op, table.NUMBERS["munmap"], (context, size))]
            return
        op.reason = "no io_setup in the log created the context"
        if op.call.result == 0:
            op.taints = op.reason

    # --- calls that extend others ----------------------------------------------------------------

    def _pkey_mprotect(self, op: PlannedCall, space: Space) -> None:
        call = op.call
        key = call.args[3] & 0xFFFFFFFF
        row = self._row(op, table.NUMBERS["mprotect"], call.args[:3])
        if key == 0xFFFFFFFF:
            op.rows = [row]
            return
        if call.result is None or call.result < 0:
            op.reason = "protection keys are not modelled"
            return

        def protect(model: ReplayModel, call: Call) -> int:
            result = model.call(row)
            if result == 0:
                model.set_field(*_range(call), PKEY, key)
            return result

        op.emulate = protect

    # --- attributes that only prevent merging ----------------------------------------------------

    def _number_of(
        self, known: list[str], value: str, field: tuple[int, int], op: PlannedCall
    ) -> int:
        """Return the number of a policy or name, 0 for none; taint ``op`` if there are too many."""
        if not value:
            return 0
        if value not in known:
            known.append(value)
        number = known.index(value) + 1
        if number >> field[1]:
            op.taints = "too many NUMA policies or area names"
            return 0
        return number

    def _mbind(self, op: PlannedCall, space: Space) -> None:
        call = op.call
        mode = call.args[2]
        if call.result not in (0, -uapi.EFAULT):
            op.reason = "NUMA nodes are not modelled"
            return
        policy = "" if mode == 0 else f"{mode} {call.extra.get('nodes')}"
        number = self._number_of(self.policies, policy, POLICY, op)

        def bind(model: ReplayModel, call: Call) -> int:
            if mode and not model.covered(*_range(call)):
                return -uapi.EFAULT
            return model.set_field(*_range(call), POLICY, number)

        op.emulate = bind

    def _prctl(self, op: PlannedCall, space: Space) -> None:
        call = op.call
        if call.args[:2] != (table.PR_SET_VMA, table.PR_SET_VMA_ANON_NAME):
            op.reason = "prctl(PR_SET_MM) is not modelled"
            op.taints = op.reason
            return
        if call.result is None or call.result < 0:
            op.reason = "the kernel may not support names of areas"
            return
        number = self._number_of(self.labels, call.extra.get("text") or "", NAME, op)
        start, end = call.args[2], call.args[2] + -(-call.args[3] // PAGE) * PAGE

        def name(model: ReplayModel, call: Call) -> int:
            if not model.covered(start, end):
                return -uapi.ENOMEM
            return model.set_field(start, end, NAME, number)

        op.emulate = name

    def _mseal(self, op: PlannedCall, space: Space) -> None:
        op.reason = "sealed areas are not modelled"
        if op.call.result == 0:
            op.emulate = _flag_setter(SEALED)

    def _userfaultfd(self, op: PlannedCall, space: Space) -> None:
        call = op.call
        op.reason = "userfaultfd is not modelled"
        given = call.extra.get("range")
        if call.result == 0 and given:
            on = call.args[1] & 0xFFFFFFFF == table.UFFDIO_REGISTER
            start, length = given

            def register(model: ReplayModel, call: Call) -> int:
                bits = FAULTED_BY_USER if on else 0
                return model.mark(start, start + length, FAULTED_BY_USER, bits)

            op.emulate = register

    def _mlockall(self, op: PlannedCall, space: Space) -> None:
        call = op.call
        flags = call.args[0] & 0xFFFFFFFF
        known = table.MCL_CURRENT | table.MCL_FUTURE | table.MCL_ONFAULT
        limit = _limits(op.step.limits)[2]
        if flags & table.MCL_FUTURE:
            op.reason = "mlockall(MCL_FUTURE) is not modelled"
            if call.result == 0:
                op.taints = op.reason
            return

        def lock(model: ReplayModel, call: Call) -> int:
            mm = model.k.mm
            if not flags or flags & ~known or flags == table.MCL_ONFAULT:
                return -uapi.EINVAL
            if limit == 0:
                return -uapi.EPERM
            if int(mm.total_vm) > limit // PAGE:
                return -uapi.ENOMEM
            on_fault = VM_LOCKONFAULT if flags & table.MCL_ONFAULT else 0
            _lock_all(model, VM_LOCKED | on_fault)
            return 0

        op.emulate = lock

    def _munlockall(self, op: PlannedCall, space: Space) -> None:
        def unlock(model: ReplayModel, call: Call) -> int:
            _lock_all(model, 0)
            return 0

        op.emulate = unlock

    def _madvise(self, op: PlannedCall, space: Space) -> None:
        call = op.call
        advice = call.args[2] & 0xFFFFFFFF
        # Linux rejects undefined values.  The model rejects them and all values not modelled.
        undefined = advice not in _UNMODELLED_ADVICE and call.result == -uapi.EINVAL
        if advice in _ADVICE or undefined:
            op.rows = [self._row(op, table.NUMBERS["madvise"], call.args)]
            return
        op.reason = f"advice {advice} is not modelled"
        if call.result == 0 and advice in (table.MADV_MERGEABLE, table.MADV_UNMERGEABLE):
            op.emulate = _flag_setter(MERGEABLE, on=advice == table.MADV_MERGEABLE)
        elif call.result == 0 and advice not in _NON_SPLITTING_ADVICE:
            op.taints = op.reason

    def _msync(self, op: PlannedCall, space: Space) -> None:
        op.emulate = _msync

    def _mincore(self, op: PlannedCall, space: Space) -> None:
        op.emulate = _mincore
        if op.call.result is not None and op.call.result not in (0, -uapi.EINVAL, -uapi.ENOMEM):
            op.reason, op.emulate = "the result depends on the output buffer", None


def _refused(call: Call) -> bool:
    """Return True if Linux did not grant the memory that the call requested."""
    if call.name == "brk":
        return call.result is not None and call.result < call.args[0]
    return call.name in ("mmap", "mremap", "mprotect") and call.result == -uapi.ENOMEM


def _range(call: Call) -> tuple[int, int]:
    """Return start and end of the pages in the range given by the first two arguments."""
    start, length = call.args[:2]
    return start, start + -(-length // PAGE) * PAGE


def _flag_setter(bits: int, *, on: bool = True) -> Emulate:
    """Return an emulation that only sets or clears flags of the areas in the call's range."""

    def mark(model: ReplayModel, call: Call) -> int:
        return model.mark(*_range(call), bits, bits if on else 0)

    return mark


def _lock_all(model: ReplayModel, bits: int) -> None:
    """Set the lock flags of every area to ``bits``, as mlockall and munlockall do."""
    model.mark(0, int(model.k.mm.task_size), VM_LOCKED | VM_LOCKONFAULT, bits)
    locked = model.areas[(model.areas["vm_flags"] & VM_LOCKED) != 0]
    model.k.mm.locked_vm = int((locked["vm_end"] - locked["vm_start"]).sum()) // PAGE


def _limits(limits: Limits) -> tuple[int, int, int]:
    memlock = None if limits.may_lock else limits.memlock
    return model_limit(limits.address_space), model_limit(limits.data), model_limit(memlock)


def _may_flags(file: FileInfo) -> int:
    """Return the VM_MAY* flags of an open file; unknown rights count as granted."""
    may = 0 if file.no_exec else VM_MAYEXEC
    if file.access in (None, 0, 2):
        may |= VM_MAYREAD
    if file.access in (None, 1, 2):
        may |= VM_MAYWRITE
    return may


def _msync(model: ReplayModel, call: Call) -> int:
    start, length, flags = call.args[:3]
    flags &= 0xFFFFFFFF
    known = table.MS_ASYNC | table.MS_INVALIDATE | table.MS_SYNC
    both = table.MS_ASYNC | table.MS_SYNC
    if flags & ~known or start % PAGE or flags & both == both:
        return -uapi.EINVAL
    end = start + -(-length // PAGE) * PAGE
    if not start <= end < 1 << 63:
        return -uapi.ENOMEM
    for area in model.areas:
        locked = area["vm_flags"] & VM_LOCKED and flags & table.MS_INVALIDATE
        if locked and area["vm_start"] < end and start < area["vm_end"]:
            return -EBUSY
    return 0 if model.covered(start, end) else -uapi.ENOMEM


def _mincore(model: ReplayModel, call: Call) -> int:
    start, length = call.args[:2]
    if start % PAGE:
        return -uapi.EINVAL
    end = start + -(-length // PAGE) * PAGE
    if length < 0 or not 0 <= start <= end <= int(model.k.mm.task_size):
        return -uapi.ENOMEM
    return 0 if model.covered(start, end) else -uapi.ENOMEM


#: Calls whose arguments the model takes as they are.
_DIRECT_CALLS = {"mprotect", "munmap", "brk", "mremap", "mlock", "mlock2", "munlock"}
_HANDLERS: dict[str, Callable[[Planner, PlannedCall, Space], None]] = {
    "mmap": Planner._mmap,
    "madvise": Planner._madvise,
    "pkey_mprotect": Planner._pkey_mprotect,
    "shmat": Planner._shmat,
    "shmdt": Planner._shmdt,
    "io_setup": Planner._io_setup,
    "io_destroy": Planner._io_destroy,
    "prctl": Planner._prctl,
    "mbind": Planner._mbind,
    "mseal": Planner._mseal,
    "userfaultfd": Planner._userfaultfd,
    "mlockall": Planner._mlockall,
    "munlockall": Planner._munlockall,
    "msync": Planner._msync,
    "mincore": Planner._mincore,
}
