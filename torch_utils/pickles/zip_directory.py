"""Strict reader of the zip container that `torch.save` writes: stored members, read in place.

A general zip library accepts much that a tensor archive never holds and an attacker likes: compression (bombs),
overlapping or duplicate members, names that leave the directory, local headers that contradict the directory. Here
anything outside the narrow profile of `torch.save` is a ValueError, before a single byte of a member is used:
one top-level folder, no compression, no encryption, unique plain names, disjoint extents in the file; zip64 is allowed.
"""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise
from typing import NamedTuple

MAX_MEMBERS = 100_000

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


class Member(NamedTuple):
    """Where the bytes of a member lie in the file."""

    start: int
    size: int
    crc: int


def read_directory(view: memoryview) -> dict[str, Member]:
    """Members of the archive by name, the common top-level folder removed.

    Raises:
        ValueError: not a complete zip, or one that `torch.save` would not have written.
    """
    count, begin, end = _locate(view)
    members: dict[str, Member] = {}
    extents: list[tuple[int, int]] = []
    roots: set[str] = set()
    position = begin
    for _ in range(count):
        name, header, member, position = _central_entry(view, position, end)
        if member.start + member.size > begin:
            raise ValueError(f"the archive is damaged: member {name!a} reaches beyond its data")
        root, slash, rest = name.partition("/")
        if not slash or not rest:
            raise ValueError(f"the archive holds {name!a} outside its top-level folder")
        if rest in members:
            raise ValueError(f"the archive holds two members named {name!a}")
        roots.add(root)
        members[rest] = member
        extents.append((header, member.start + member.size))
    if position != end or len(roots) > 1:
        raise ValueError("the archive has a directory that PyTorch does not write")
    extents.sort()
    if any(stop > start for (_, stop), (start, _) in pairwise(extents)):
        raise ValueError("the archive is damaged: two members overlap")
    return members


def check_crc(view: memoryview, member: Member, name: str) -> None:
    """Raise ValueError unless the bytes of the member have the checksum of the directory."""
    if zlib.crc32(view[member.start : member.start + member.size]) != member.crc:
        raise ValueError(f"the archive is damaged: {name} does not have its checksum")


def _unpack(record: struct.Struct, view: memoryview, position: int, magic: bytes) -> tuple:
    if position < 0 or position + record.size > len(view):
        raise ValueError("the archive is truncated or damaged")
    fields = record.unpack_from(view, position)
    if fields[0] != magic:
        raise ValueError("the archive is truncated or damaged")
    return fields


def _locate(view: memoryview) -> tuple[int, int, int]:
    """Number of members, start and end of the central directory."""
    tail = max(0, len(view) - _END.size - 0xFFFF)
    at = bytes(view[tail:]).rfind(b"PK\x05\x06")
    if at < 0:
        raise ValueError("the archive is truncated: its directory, the last part of the file, is missing")
    position = tail + at
    _, disk, first, here, count, size, begin, comment = _unpack(_END, view, position, b"PK\x05\x06")
    end = position
    if position + _END.size + comment != len(view):
        raise ValueError("the archive is damaged: bytes follow its end")
    if 0xFFFF in (here, count) or 0xFFFFFFFF in (size, begin):
        _, _, end, _ = _unpack(_LOCATOR, view, position - _LOCATOR.size, b"PK\x06\x07")
        _, _, _, _, disk, first, here, count, size, begin = _unpack(_END64, view, end, b"PK\x06\x06")
    elif position >= _LOCATOR.size and bytes(view[position - _LOCATOR.size :][:4]) == b"PK\x06\x07":
        _, _, end, _ = _unpack(_LOCATOR, view, position - _LOCATOR.size, b"PK\x06\x07")
    if disk or first or here != count or begin + size != end:
        raise ValueError("the archive is damaged: its directory is not where it says")
    if count > MAX_MEMBERS:
        raise ValueError(f"the archive declares {count} members, more than the {MAX_MEMBERS} allowed")
    return count, begin, end


def _central_entry(view: memoryview, position: int, end: int) -> tuple[str, int, Member, int]:
    """Name, local header offset, extent, and where the next entry begins."""
    entry = _unpack(_CENTRAL, view, position, b"PK\x01\x02")
    flags, method, crc, packed, size = entry[3], entry[4], entry[7], entry[8], entry[9]
    name_length, extra_length, comment_length, attributes, header = *entry[10:13], entry[15], entry[16]
    after_name = position + _CENTRAL.size + name_length
    following = after_name + extra_length + comment_length
    if following > end:
        raise ValueError("the archive is truncated or damaged")
    raw = bytes(view[after_name - name_length : after_name])
    name = _plain_name(raw)
    size, packed, header = _zip64(bytes(view[after_name : after_name + extra_length]), size, packed, header)
    if flags & 0x2041:  # bits 0, 6, 13: encryption
        raise ValueError(f"the archive member {name!a} is encrypted")
    if method != 0 or packed != size:
        raise ValueError(f"the archive member {name!a} is compressed: tensor archives are not")
    if attributes >> 28 not in (0, 8):  # file type of the unix mode: regular or unset
        raise ValueError(f"the archive member {name!a} is a link or a device")
    local = _unpack(_LOCAL, view, header, b"PK\x03\x04")
    begin = header + _LOCAL.size + local[9]
    deferred = (0, 0xFFFFFFFF) if local[2] & 8 else (0xFFFFFFFF,)  # sizes may follow the data, or stand in zip64
    agree = local[3] == method and bytes(view[begin - local[9] : begin]) == raw
    if not agree or any(n != size and n not in deferred for n in local[7:9]):
        raise ValueError(f"the archive is damaged: its directory contradicts the header of {name!a}")
    return name, header, Member(begin + local[10], size, crc), following


def _plain_name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"the archive holds a member with an unreadable name {raw[:80]!a}") from None
    refuse_unsafe(name)
    return name


def refuse_unsafe(name: str) -> None:
    """A ValueError for the name of a member that could lead out of the folder it is unpacked to."""
    if name.startswith("/") or any(c in name for c in "\\\0:") or ".." in name.split("/") or len(name) > 512:
        raise ValueError(f"the archive holds a member with the unsafe name {name[:80]!a}")


def _zip64(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Replace the 32-bit fields that are all ones by the 64-bit values of the zip64 extra field."""
    position = 0
    while position + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, position)
        body = extra[position + 4 : position + 4 + length]
        if tag == 1:
            values = iter(struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8]))
            fields = [next(values, v) if v == 0xFFFFFFFF else v for v in (size, packed, header)]
            return fields[0], fields[1], fields[2]
        position += 4 + length
    return size, packed, header
