"""File systems: identify the one that holds a file, and those that align large mappings."""

import ctypes

#: Names by statfs's f_type; file systems not listed are named by the number.
_NAMES = {
    0xEF53: "ext4",  # ext2 and ext3 too
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xF2F52010: "f2fs",
    0xCA451A4E: "bcachefs",
    0x01021994: "tmpfs",
    0x958458F6: "hugetlbfs",
    0x794C7630: "overlayfs",
    0x6969: "nfs",
    0x65735546: "fuse",
    0x73717368: "squashfs",
    0xE0F5E1E2: "erofs",
    0x2FC12FC1: "zfs",
    0x01021997: "9p",
    0x9FA0: "proc",
    0x62656572: "sysfs",
    0x09041934: "anon_inodefs",
    0x50495045: "pipefs",
    0x534F434B: "sockfs",
}
#: File systems whose file_operations place mappings with thp_get_unmapped_area, so that huge pages
#: can map them, in every Linux version that the model covers (6.7 and later).  bcachefs and erofs
#: do so only since a later version, and f2fs does not.  They are in neither set: for a file system
#: in neither set, either placement is possible.
ALIGNING = frozenset({"ext4", "xfs", "btrfs"})
NOT_ALIGNING = frozenset({"tmpfs", "proc", "sysfs"})

_libc = ctypes.CDLL(None, use_errno=True)


def file_system(path: str) -> str:
    """Return the name of the file system that holds ``path``, '?' if statfs fails."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(path.encode(), buffer) != 0:
        return "?"
    kind = int.from_bytes(buffer[:8], "little") & 0xFFFFFFFF
    return _NAMES.get(kind, hex(kind))
