"""Zip archives of uncompressed files, written front to back: what `zipfile` writes, byte for byte, without seeking.

`zipfile` returns to the header of every file and flushes the disk buffer each time, which costs more than a small image
does. Format: APPNOTE.TXT 6.3 of PKWARE, sections 4.3 and 4.5.3 (zip64 beyond 65,535 files or 4 GiB).
"""

from __future__ import annotations

import struct
import zlib
from typing import IO

_DATE = 0x21  # 1 January 1980, the first of the format
_MODE = 0o644 << 16  # as on Unix, which is system 3
_MOST_FILES, _MOST_BYTES = 0xFFFF, 0x7FFFFFFF  # zipfile uses zip64 beyond the same limits


class StoredZip:
    """Adds files to an archive; `close` writes its directory.

    Args:
        file: writable, at its beginning.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._offset = 0
        self._directory: list[bytes] = []

    def add(self, name: str, data: bytes) -> None:
        """Append a file of less than 2 GiB; `name` is ASCII."""
        raw, crc, size = name.encode("ascii"), zlib.crc32(data), len(data)
        common = (0, 0, 0, _DATE, crc, size, size, len(raw))  # flags, method, time, ...
        header = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, *common, 0) + raw
        far = self._offset > _MOST_BYTES
        extra = struct.pack("<HHQ", 1, 8, self._offset) if far else b""
        version = 45 if far else 20
        self._directory.append(
            struct.pack(
                "<4sBBHHHHHIIIHHHHHII", b"PK\1\2", version, 3, version, *common, len(extra), 0, 0, 0, _MODE,
                0xFFFFFFFF if far else self._offset,
            ) + raw + extra
        )  # fmt: skip
        self._file.write(header + data)
        self._offset += len(header) + size

    def close(self) -> None:
        """Write the directory; the file itself stays open."""
        directory = b"".join(self._directory)
        start, size, count = self._offset, len(directory), len(self._directory)
        tail = b""
        if count > _MOST_FILES or start > _MOST_BYTES or size > _MOST_BYTES:
            record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
            tail = record + struct.pack("<4sIQI", b"PK\6\7", 0, start + size, 1)
            count, size, start = min(count, 0xFFFF), min(size, 0xFFFFFFFF), min(start, 0xFFFFFFFF)
        self._file.write(directory + tail + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, size, start, 0))
