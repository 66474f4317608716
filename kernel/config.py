"""Settings of a simulated kernel: their defaults and the checks of their values.

A :class:`KernelConfig` is plain data.  A run reads its settings from conf/kernel/linux.yaml; tests
and tools construct their own.  :class:`kernel.boot.Machine` boots a process with these settings.
Some settings are compiled in instead of read at run time: :meth:`KernelConfig.switches`.
"""

from dataclasses import dataclass, field

from kernel.frames import default_min_free
from kernel.maps import FRESH_PROCESS, check_window, parse_maps
from kernel.tlb import check_geometry
from kernel.types import MAX_FRAMES, THP_ALWAYS, THP_MADVISE, THP_NEVER

#: Default and upper limit of the number of areas of a process (vm.max_map_count).
MAX_MAP_COUNT = 65530

#: NumPy limits a record type to 2 GiB, and the kernel's record contains the page states.
MAX_WINDOW_BITS = 41

#: Settings in bytes; 0: no limit (swap: no swap area).
_SIZES = ("memory", "swap", "rlimit_as", "rlimit_data", "rlimit_memlock", "rlimit_stack")

_THP = {"never": THP_NEVER, "madvise": THP_MADVISE, "always": THP_ALWAYS}


@dataclass(frozen=True)
class KernelConfig:
    """Settings of a kernel; sizes in bytes, 0 for no limit.  Raises ValueError for a bad value.

    ``maps``: the initial areas of the process, in the format of /proc/PID/maps.  ``mmap_base``:
    address at which the top-down search starts; 0: the end of the highest mapping below the stack.
    ``legacy_layout``: place mappings bottom-up.  ``layout_only``: map no pages at all, so that any
    address can be used; for replaying system calls of a program whose accesses are not recorded.

    ``frames``: back every page by a frame of ``memory`` (kernel.frames); ``fragmentation``: percent
    of the huge-page-sized blocks in which the rest of the system holds a frame; ``zone_boundary``:
    first byte of the upper zone; ``min_free``: sum of the min watermarks, 0 for Linux's formula.
    ``tlb``: model the TLBs (kernel.tlb); ``tlb_*``: entries and ways of each table, 0 for no table.
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
        """Raise ValueError if the settings of physical memory are inconsistent."""
        if not self.memory:
            raise ValueError("frames needs memory: it is 0; set the bytes of physical memory")
        if self.layout_only:
            raise ValueError("frames and layout_only exclude each other: set only one of them")
        for name in ("memory", "swap"):
            if getattr(self, name) // self.page_size > MAX_FRAMES:
                raise ValueError(
                    f"{name} is {getattr(self, name)} bytes: frames allows at most "
                    f"{MAX_FRAMES} pages of {self.page_size} bytes"
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
        """Sum of the min watermarks of all zones, bytes."""
        return self.min_free or default_min_free(self.memory)

    @property
    def page_shift(self) -> int:
        """log2 of the page size."""
        return self.page_size.bit_length() - 1

    def switches(self) -> dict[str, int]:
        """Return the compile-time switches that these settings require (kernel.engine.switches)."""
        switches = {"PAGE_SHIFT": self.page_shift, "WINDOW_BITS": self.window_bits}
        # Switches that are off keep their defaults.
        return switches | {n.upper(): True for n in ("frames", "tlb") if getattr(self, n)}
