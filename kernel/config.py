"""The settings of a simulated kernel: their defaults, and which values cannot be.

A :class:`KernelConfig` is plain data.  conf/kernel/linux.yaml gives a run its own, tests and tools
make theirs; :class:`kernel.boot.Machine` is a process on a kernel that is set so.  A few settings
are compiled in instead of looked at: :meth:`KernelConfig.switches`.
"""

from dataclasses import dataclass, field

from kernel.frames import default_min_free
from kernel.maps import FRESH_PROCESS, check_window, parse_maps
from kernel.tlb import check_geometry
from kernel.types import MAX_FRAMES, THP_ALWAYS, THP_MADVISE, THP_NEVER

#: Areas that a process may have, by default and at most (vm.max_map_count).
MAX_MAP_COUNT = 65530

#: NumPy's record types end at 2 GiB, and the page states are part of the kernel's record.
MAX_WINDOW_BITS = 41

#: Settings in bytes; 0: no limit (swap: none).
_SIZES = ("memory", "swap", "rlimit_as", "rlimit_data", "rlimit_memlock", "rlimit_stack")

_THP = {"never": THP_NEVER, "madvise": THP_MADVISE, "always": THP_ALWAYS}


@dataclass(frozen=True)
class KernelConfig:
    """Settings of a kernel; sizes in bytes, 0 for no limit.  Raises ValueError when impossible.

    ``maps``: the areas of the process when it begins, as /proc/PID/maps shows them.
    ``mmap_base``: where top-down search begins; 0: where the highest mapping below the stack ends.
    ``legacy_layout``: mappings are placed from the bottom up.  ``layout_only``: no page is ever
    mapped, so that any address will do; for replaying system calls whose touches are not known.

    ``frames``: every page takes a frame of ``memory`` (kernel.frames); ``fragmentation``: percent
    of its blocks of a huge page's size in which the rest of the system holds a frame;
    ``zone_boundary``: where the upper zone begins; ``min_free``: the min watermarks, 0 for Linux's
    formula.  ``tlb``: translations are cached (kernel.tlb), in tables of so many entries and ways.
    """

    page_size: int = 4096
    memory: int = 0
    swap: int = 0
    rlimit_as: int = 0
    rlimit_data: int = 0
    rlimit_memlock: int = 0
    rlimit_stack: int = 8 << 20
    overcommit: int = 2
    overcommit_ratio: int = 100
    thp: str = "never"
    legacy_layout: bool = False
    max_map_count: int = MAX_MAP_COUNT
    window_bits: int = 39
    layout_only: bool = False
    mmap_base: int = 0
    frames: bool = False
    fragmentation: int = 0
    zone_boundary: int = 4 << 30
    min_free: int = 0
    tlb: bool = False
    tlb_l1_entries: int = 64
    tlb_l1_ways: int = 4
    tlb_l1_huge_entries: int = 32
    tlb_l1_huge_ways: int = 4
    tlb_l2_entries: int = 1536
    tlb_l2_ways: int = 12
    maps: str = field(default=FRESH_PROCESS, repr=False)

    def __post_init__(self) -> None:
        if self.page_size not in (4096, 16384, 65536):
            raise ValueError(f"page_size must be 4096, 16384 or 65536, not {self.page_size}")
        for name in _SIZES:
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} must be 0 (no limit) or positive, not {getattr(self, name)}"
                )
        if 0 < self.memory < self.page_size:
            raise ValueError(f"memory ({self.memory}) is less than one page ({self.page_size})")
        if self.overcommit not in (0, 1, 2):
            raise ValueError(f"overcommit must be 0, 1 or 2, not {self.overcommit}")
        if not 0 <= self.overcommit_ratio <= 1000:
            raise ValueError(f"overcommit_ratio must be 0 to 1000 %, not {self.overcommit_ratio}")
        if self.thp not in _THP:
            raise ValueError(f"thp must be {', '.join(_THP)}, not {self.thp}")
        if not 8 <= self.max_map_count <= MAX_MAP_COUNT:
            raise ValueError(
                f"max_map_count must be 8 to {MAX_MAP_COUNT}, not {self.max_map_count}"
            )
        if not 32 <= self.window_bits <= MAX_WINDOW_BITS:
            raise ValueError(f"window_bits must be 32 to {MAX_WINDOW_BITS}, not {self.window_bits}")
        areas = parse_maps(self.maps, self.page_size).areas
        if len(areas) > self.max_map_count:
            raise ValueError(f"maps has {len(areas)} areas, max_map_count is {self.max_map_count}")
        if not self.layout_only:
            check_window(areas, self.window_bits)
        if self.frames:
            self._check_frames()
        if self.tlb:
            for name in ("tlb_l1", "tlb_l1_huge", "tlb_l2"):
                check_geometry(
                    name, getattr(self, f"{name}_entries"), getattr(self, f"{name}_ways")
                )

    def _check_frames(self) -> None:
        """Raise ValueError when physical memory cannot be as the settings say."""
        if not self.memory:
            raise ValueError("frames needs memory, the bytes that there are frames of: it is 0")
        if self.layout_only:
            raise ValueError("frames and layout_only exclude each other: no page is ever mapped")
        for name in ("memory", "swap"):
            if getattr(self, name) // self.page_size > MAX_FRAMES:
                raise ValueError(
                    f"{name} is {getattr(self, name)} bytes: with frames at most "
                    f"{MAX_FRAMES} pages of {self.page_size}"
                )
        if not 0 <= self.fragmentation <= 100:
            raise ValueError(f"fragmentation must be 0 to 100 %, not {self.fragmentation}")
        block = self.page_size << max(10, self.page_shift - 3)
        if self.zone_boundary < 0 or self.zone_boundary % block:
            raise ValueError(
                f"zone_boundary must be a multiple of {block}, the largest block of frames, "
                f"not {self.zone_boundary}"
            )
        if self.min_free < 0 or self.min_free_bytes >= self.memory:
            raise ValueError(
                f"min_free ({self.min_free_bytes}) must be less than memory ({self.memory})"
            )

    @property
    def min_free_bytes(self) -> int:
        """Bytes of all min watermarks."""
        return self.min_free or default_min_free(self.memory)

    @property
    def page_shift(self) -> int:
        """log2 of the page size."""
        return self.page_size.bit_length() - 1

    def switches(self) -> dict[str, int]:
        """The compile-time switches that this configuration fixes (kernel.engine.switches)."""
        switches = {"PAGE_SHIFT": self.page_shift, "WINDOW_BITS": self.window_bits}
        # What is off is left at its default.
        return switches | {n.upper(): True for n in ("frames", "tlb") if getattr(self, n)}
