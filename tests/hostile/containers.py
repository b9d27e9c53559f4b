"""Hostile files: zip archives, .safetensors, and content that is no checkpoint at all.

CONTAINERS wrap a pickle stream as a raw pickle, a torch zip and a legacy torch file. ZIPS: name -> (bytes, text that
the refusal must contain). SAFETENSORS and OTHERS: name -> bytes.
"""

import io
import json
import pickle
import struct
import zipfile
import zlib

from hostile.assemble import CODE, COMMAND, MAGIC, MARKER, call, integer, items, legacy, p2, storage_id, tensor, text
from hostile.pickles import TENSORS

# Zip containers.


def zip_file(members, **overrides):
    """A stored zip as `torch.save` writes it. `members`: (name, data[, fields]) where fields replace header values.

    Fields: method, flags, packed, size, crc, local_name, header, attributes. Overrides: count, begin, comment.
    """
    body, directory = b"", b""
    for name, data, *fields in members:
        f = {
            "method": 0, "flags": 0, "packed": len(data), "size": len(data), "crc": zlib.crc32(data),
            "local_name": name, "header": len(body), "attributes": 0,
        } | (fields[0] if fields else {})  # fmt: skip
        raw, local = name.encode("utf-8", "surrogatepass"), f["local_name"].encode()
        common = (f["flags"], f["method"], 0, 0, f["crc"], f["packed"], f["size"])
        local_sizes = (f.get("local_packed", f["packed"]), f.get("local_size", f["size"]))
        body += (
            struct.pack("<4s5H3L2H", b"PK\3\4", 20, *common[:4], f["crc"], *local_sizes, len(local), 0) + local + data
        )
        directory += (
            struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, *common, len(raw), 0, 0, 0, 0, f["attributes"], f["header"])
            + raw
        )
    n = overrides.get("count", len(members))
    begin = overrides.get("begin", len(body))
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, n, n, len(directory), begin, 0)
    return body + directory + end + overrides.get("comment", b"")


def torch_zip(stream, storages=(), **overrides):
    members = [("archive/data.pkl", stream), ("archive/byteorder", b"little")]
    members += [(f"archive/data/{key}", data) for key, data in storages]
    return zip_file([*members, ("archive/version", b"3\n")], **overrides)


CONTAINERS = {
    "raw": lambda body: body,
    "zip": torch_zip,
    "legacy": lambda body: legacy(body),
}

_OK = p2(items(a=b"K\x01"))


def zip_tensor(count=4, data=b"\0" * 16, **options):
    return torch_zip(p2(tensor(storage_id(count, options.pop("key", "0")), **options)), [("0", data)])


def _deflated(size):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", _OK)
        archive.writestr("archive/data/0", b"\0" * size)
    return buffer.getvalue()


def _end64(count):
    directory = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, 0, 0)
    return (
        directory
        + struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
        + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    )


ZIPS = {
    "bomb": (_deflated(20_000_000), "compressed"),
    "many members": (b"PK\3\4" + _end64(200_000)[4:], "damaged"),
    "200,000 members": (_end64(200_000), "200000 members"),
    "member count lies": (torch_zip(_OK, count=60_000), "damaged"),
    "directory offset lies": (torch_zip(_OK, begin=0), "damaged"),
    "bytes after the end": (torch_zip(_OK, comment=b"x" * 100), "follow"),
    "duplicate data.pkl": (zip_file([("a/data.pkl", _OK), ("a/data.pkl", p2(call("os system")))]), "two members"),
    "two folders": (zip_file([("a/data.pkl", _OK), ("b/data/0", b"")]), "directory"),
    "no folder": (zip_file([("data.pkl", _OK)]), "outside"),
    "no data.pkl": (zip_file([("a/version", b"3")]), "data.pkl"),
    "empty": (zip_file([]), "data.pkl"),
    "parent path": (zip_file([("a/data.pkl", _OK), ("a/../../evil", b"x")]), "unsafe name"),
    "absolute path": (zip_file([("a/data.pkl", _OK), ("/etc/passwd", b"x")]), "unsafe name"),
    "backslash path": (zip_file([("a/data.pkl", _OK), ("a\\..\\evil", b"x")]), "unsafe name"),
    "drive letter": (zip_file([("a/data.pkl", _OK), ("C:/evil", b"x")]), "unsafe name"),
    "NUL in name": (zip_file([("a/data.pkl", _OK), ("a/x\0y", b"x")]), "unsafe name"),
    "name not UTF-8": (zip_file([("a/data.pkl", _OK), ("a/\udcff", b"x", {"local_name": "a/x"})]), "unreadable name"),
    "link": (zip_file([("a/data.pkl", _OK), ("a/link", b"/etc", {"attributes": 0o120777 << 16})]), "link"),
    "encrypted": (zip_file([("a/data.pkl", _OK, {"flags": 1})]), "encrypted"),
    "method unknown": (zip_file([("a/data.pkl", _OK, {"method": 99})]), "compressed"),
    "sizes disagree": (zip_file([("a/data.pkl", _OK, {"packed": len(_OK) - 1})]), "compressed"),
    "size beyond file": (zip_file([("a/data.pkl", _OK, {"size": 1 << 30, "packed": 1 << 30})]), "beyond"),
    "local name differs": (zip_file([("a/data.pkl", _OK, {"local_name": "a/evil.pkl"})]), "contradicts"),
    "local size differs": (zip_file([("a/data.pkl", _OK, {"local_size": 1, "local_packed": 1})]), "contradicts"),
    "header offset lies": (zip_file([("a/data.pkl", _OK, {"header": 1 << 31})]), "damaged"),
    "overlap": (
        zip_file([("a/data.pkl", _OK + b"\0" * 90), ("a/x", _OK, {"header": 0, "local_name": "a/data.pkl"})]),
        "contradicts",
    ),
    "overlapping members": (
        zip_file([("a/data.pkl", zip_file([("a/x", b"yy")])[:35], {}), ("a/x", b"yy", {"header": 40})]),
        "overlap",
    ),
    "wrong checksum": (zip_file([("a/data.pkl", _OK, {"crc": 1})]), "checksum"),
    "big-endian": (zip_file([("a/data.pkl", _OK), ("a/byteorder", b"big")]), "big-endian"),
    "TorchScript code": (zip_file([("a/data.pkl", _OK), ("a/code/__torch__.py", CODE.encode())]), "TorchScript"),
    "TorchScript constants": (zip_file([("a/data.pkl", _OK), ("a/constants.pkl", _OK)]), "TorchScript"),
    "nested zip": (zip_file([("a/archive.zip", torch_zip(_OK))]), "data.pkl"),
    "payload after STOP": (torch_zip(_OK + p2(call("os system", text(COMMAND)))), "follow"),
    "storage missing": (zip_tensor(key="7"), "does not hold"),
    "storage path": (zip_tensor(key="../../etc/passwd"), "does not hold"),
    "storage too small": (zip_tensor(data=b"\0" * 12), "16 bytes"),
    "storage too large": (zip_tensor(data=b"\0" * 20), "16 bytes"),
    "storage 2^40": (zip_tensor(count=1 << 40, size=(1 << 40,)), "does not hold"),
    "storage with two types": (
        torch_zip(p2(b"(" + storage_id(4) + storage_id(2, kind="torch DoubleStorage") + b"t"), [("0", b"\0" * 16)]),
        "two element types",
    ),
    "storage wrong checksum": (
        zip_file(
            [("a/data.pkl", p2(tensor(storage_id(4)))), ("a/data/0", b"\0" * 16, {"crc": 5})],
        ),
        "checksum",
    ),
    "persistent id is text": (torch_zip(p2(text("os.system") + b"Q")), "not a storage"),
    "persistent id is a module": (
        torch_zip(p2(b"(" + text("module") + text("x") + text(CODE) + b"tQ")),
        "not a storage",
    ),
} | {f"zip {name}": (zip_tensor(**options), reason) for name, (options, reason) in TENSORS.items()}


# Archives around a checkpoint: name -> (bytes, text that the refusal must contain)


def archive(**members):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return content.getvalue()


MODEL = "model.ckpt"
ARCHIVES = {
    "no checkpoint": (archive(**{"readme.txt": b"x"}), "holds no model.ckpt"),
    "two checkpoints": (archive(**{"a/model.ckpt": b"x", "b/model.ckpt": b"x"}), "holds 2 model.ckpt"),
    "too deep": (archive(**{"a/b/model.ckpt": b"x"}), "holds no model.ckpt"),
    "up": (archive(**{MODEL: b"x", "../../evil": b"x"}), "unsafe name"),
    "absolute": (archive(**{MODEL: b"x", "/evil": b"x"}), "unsafe name"),
    "drive": (archive(**{MODEL: b"x", "C:evil": b"x"}), "unsafe name"),
    "backslash": (archive(**{MODEL: b"x", "a\\evil": b"x"}), "unsafe name"),
    "bomb": (archive(**{MODEL: b"\0" * (300 << 20)}), "more than it declares, or than its bytes can hold"),
    "encrypted": (zip_file([(MODEL, b"x", {"flags": 1})]), "encrypted"),
    "link": (zip_file([(MODEL, b"/etc/passwd", {"attributes": 0xA1FF << 16})]), "link or a device"),
    "twice": (zip_file([(MODEL, b"x"), (MODEL, b"y")]), "two members of one name"),
    "declares too much": (zip_file([(MODEL, b"x", {"size": 0xFFFFFFF0, "packed": 0xFFFFFFF0})]), ""),
    "wrong checksum": (zip_file([(MODEL, b"x", {"crc": 1})]), "cannot be unpacked"),
    "unknown method": (zip_file([(MODEL, b"x", {"method": 99})]), "cannot be unpacked"),
    "an archive again": (archive(**{MODEL: archive(**{MODEL: b"x"})}), "archive again"),
    "no tensors": (archive(**{MODEL: b"text"}), ""),
    "many members": (zip_file([(f"{i}", b"") for i in range(100_001)], count=100_001 & 0xFFFF), ""),
}


# .safetensors


def safetensors_file(header, data=b"\0" * 16, length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def _entry(begin=0, end=16, shape=(4,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


SAFETENSORS = {
    "header 2^63": safetensors_file({"a": _entry()}, length=1 << 63),
    "header longer than file": safetensors_file({"a": _entry()}, length=1 << 20),
    "header of 0 bytes": safetensors_file({"a": _entry()}, length=0),
    "header cut": safetensors_file({"a": _entry()}, length=20),
    "header too short": b"\x10\0\0\0",
    "header not JSON": safetensors_file(b"{" + b"x" * 40),
    "header list": safetensors_file(b"[" * 40),
    "header deep": safetensors_file(b'{"a":' * 100_000),
    "offsets overlap": safetensors_file({"a": _entry(), "b": _entry(8, 24)}, b"\0" * 24),
    "offsets beyond file": safetensors_file({"a": _entry(0, 1 << 40, (1 << 38,))}),
    "offsets reversed": safetensors_file({"a": _entry(16, 0)}),
    "offsets negative": safetensors_file({"a": _entry(-16, 0)}),
    "offsets with gap": safetensors_file({"a": _entry(4, 16, (3,))}),
    "data left over": safetensors_file({"a": _entry()}, b"\0" * 20),
    "data missing": safetensors_file({"a": _entry()}, b"\0" * 12),
    "shape overflow": safetensors_file({"a": _entry(shape=(1 << 62, 1 << 62))}),
    "shape larger": safetensors_file({"a": _entry(shape=(5,))}),
    "shape negative": safetensors_file({"a": _entry(shape=(-4,))}),
    "dtype unknown": safetensors_file({"a": _entry(dtype="PYOBJ")}),
    "dtype object": safetensors_file({"a": _entry(dtype={"os": "system"})}),
    "duplicate keys": safetensors_file(b'{"a":' + json.dumps(_entry(0, 16)).encode() + b',"a":'
                                       + json.dumps(_entry(0, 8, (2,))).encode() + b"}"),
    "metadata number": safetensors_file({"__metadata__": {"fewstep": 5}, "a": _entry()}),
    "metadata not JSON": safetensors_file({"__metadata__": {"fewstep": "os.system"}, "a": _entry()}),
    "metadata deep": safetensors_file({"__metadata__": {"fewstep": "[" * 100_000}, "a": _entry()}),
    "metadata newer": safetensors_file({"__metadata__": {"fewstep": '{"version": 99}'}, "a": _entry()}),
    "metadata without hash": safetensors_file({"__metadata__": {"fewstep": '{"version": 1}'}, "a": _entry()}),
}  # fmt: skip

# Things that are no checkpoint at all.

OTHERS = {
    "empty": b"",
    "one byte": b"\x80",
    "PK": b"PK",
    "text": b"hello",
    "script": b"#!/bin/sh\ntouch " + MARKER.encode() + b"\n",
    "yaml": b"!!python/object/apply:os.system ['touch " + MARKER.encode() + b"']\n",
    "gzip": b"\x1f\x8b\x08\0" + b"\0" * 60,
    "tar": b"evil\0" + b"\0" * 252 + b"ustar",
    "npy": b"\x93NUMPY\x01\0" + b"\0" * 40,
    "zeros": b"\0" * 100_000,
    "two pickles": _OK + _OK,
    "payload after STOP": _OK + p2(call("os system", text(COMMAND))),
    "protocol 0 payload": b"cos\nsystem\n(S'touch " + MARKER.encode() + b"'\ntR.",
    "bad legacy magic": p2(integer(MAGIC)) + p2(integer(1000)) + p2(b"}") + _OK + p2(b"]"),
    "legacy big-endian": p2(integer(MAGIC)) + p2(integer(1001)) + p2(items(little_endian=b"\x89")) + _OK + p2(b"]"),
    "legacy keys unlisted": legacy(p2(storage_id(4, view=b"N")), [], b"\0" * 24),
    "legacy keys repeated": legacy(p2(storage_id(1, view=b"N")), ["0", "0"], (struct.pack("<q", 1) + b"\0" * 4) * 2),
    "legacy two sizes": legacy(p2(storage_id(1, view=b"N") + storage_id(2, view=b"N") + b"\x86"), ["0"]),
    "legacy data missing": legacy(p2(storage_id(4, view=b"N")), ["0"]),
    "python pickle of a class": pickle.dumps(io.BytesIO, protocol=4),
    "python pickle of reduce": pickle.dumps(slice(1), protocol=4),
}
