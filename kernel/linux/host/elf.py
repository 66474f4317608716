"""The part of the ELF format that the host process needs: read an object file, write a program."""

import struct

PAGE_SIZE = 4096

#: Type of a symbol whose address is a resolver, which selects the real function at load time.
STT_GNU_IFUNC = 10


class ElfFile:
    """Sections of a 64-bit little-endian ELF file."""

    def __init__(self, data: bytes) -> None:
        """Parse the section headers.  Raises ValueError for any other file."""
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError("not a 64-bit little-endian ELF file")
        self._data = data
        table = struct.unpack_from("<Q", data, 0x28)[0]
        size, count, names_at = struct.unpack_from("<HHH", data, 0x3A)
        header = struct.Struct("<IIQQQQIIQQ")  # name, type, flags, addr, offset, size, link, …
        self._headers = [header.unpack_from(data, table + i * size) for i in range(count)]
        names = self._body(self._headers[names_at])
        self._by_name = {_string(names, h[0]): h for h in self._headers}

    def _body(self, header: tuple) -> bytes:
        return self._data[header[4] : header[4] + header[5]]

    def has(self, name: str) -> bool:
        """Return True if there is a section of that name."""
        return name in self._by_name

    def section(self, name: str) -> bytes:
        """Return the bytes of a section.  Raises KeyError."""
        return self._body(self._by_name[name])

    def symbols(self, table: str) -> dict[str, tuple[int, int]]:
        """Return (value, type) of the global symbols defined in section ``table``, by name.

        If a name has several versions, the first one counts.
        """
        strings = self._body(self._headers[self._by_name[table][6]])
        found: dict[str, tuple[int, int]] = {}
        for at, info, _other, section, value, _size in struct.iter_unpack(
            "<IBBHQQ", self.section(table)
        ):
            if section and info >> 4:  # defined here, not local
                found.setdefault(_string(strings, at), (value, info & 15))
        return found

    def build_id(self) -> str:
        """Return the build ID that the linker recorded, in hex digits; '' if there is none."""
        name = ".note.gnu.build-id"
        if not self.has(name):
            return ""
        note = self.section(name)
        owner, length = struct.unpack_from("<II", note)
        begin = 12 + owner + -owner % 4
        return note[begin : begin + length].hex()


def _string(table: bytes, at: int) -> str:
    return table[at : table.index(b"\0", at)].decode()


#: Types and permissions of ELF segments, and tags of the dynamic section.
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP, _PT_PHDR, _PT_GNU_STACK = 1, 2, 3, 6, 0x6474E551
_PF_RX, _PF_RW, _PF_R = 5, 6, 4
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT = 0, 1, 5, 6, 10, 11
_INTERPRETER = b"/lib64/ld-linux-x86-64.so.2\0"


def program(text: bytes, entry: int, start: int, *, libc: bool) -> bytes:
    """Return an executable with the machine code ``text``: one page, mapped at ``start``.

    ``entry``: offset of the entry point in ``text``.  ``libc``: the standard loader also loads the
    C library, from which the program imports nothing.  The empty segment is at the end of the page,
    so that ``end_data - start_data``, which counts against RLIMIT_DATA, is 0.
    """
    segment = struct.Struct("<IIQQQQQQ")  # type, flags, offset, vaddr, paddr, filesz, memsz, align
    segments = 6 if libc else 3
    at = 64 + segments * segment.size

    def part(kind: int, rights: int, offset: int, size: int) -> bytes:
        return segment.pack(kind, rights, offset, start + offset, start + offset, size, size, 8)

    headers, body = b"", b""
    if libc:
        strings = b"\0libc.so.6\0"
        names_at = at + len(_INTERPRETER)
        symbols_at = names_at + len(strings) + -(names_at + len(strings)) % 8
        dynamic_at = symbols_at + 24  # after the null symbol, with which every table starts
        dynamic = struct.pack(
            "<12Q",
            *(_DT_NEEDED, 1),
            *(_DT_STRTAB, start + names_at),
            *(_DT_STRSZ, len(strings)),
            *(_DT_SYMTAB, start + symbols_at),
            *(_DT_SYMENT, 24),
            *(_DT_NULL, 0),
        )
        headers += part(_PT_PHDR, _PF_R, 64, segments * segment.size)
        headers += part(_PT_INTERP, _PF_R, at, len(_INTERPRETER))
        headers += part(_PT_DYNAMIC, _PF_R, dynamic_at, len(dynamic))
        body = (_INTERPRETER + strings).ljust(dynamic_at - at, b"\0") + dynamic
    end = start + PAGE_SIZE
    headers += segment.pack(_PT_LOAD, _PF_RX, 0, start, start, PAGE_SIZE, PAGE_SIZE, PAGE_SIZE)
    headers += segment.pack(_PT_LOAD, _PF_RW, 0, end, end, 0, 0, PAGE_SIZE)
    headers += segment.pack(_PT_GNU_STACK, _PF_RW, 0, 0, 0, 0, 0, 16)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        2,  # ET_EXEC: the same addresses with and without randomisation
        62,  # x86-64
        1,
        start + at + len(body) + entry,
        64,
        0,
        0,
        64,
        segment.size,
        segments,
        0,
        0,
        0,
    )
    image = header + headers + body + text
    if len(image) > PAGE_SIZE:
        raise AssertionError("the program does not fit into one page")
    return image.ljust(PAGE_SIZE, b"\0")
