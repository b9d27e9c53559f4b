"""A small assembler of pickle streams, and the pieces that attacks are made of.

Every attack that would run writes MARKER into the current directory.
"""

import struct

MARKER = "hostile-was-here"
COMMAND = f"touch {MARKER}"
CODE = f"open({MARKER!r}, 'w').close()"
MAGIC = 0x1950A86A20F9469CFC6C

# A small assembler.


def text(value):
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def short(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def glob(name):
    """GLOBAL 'module attribute' (protocol 2)."""
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


def stack_global(name):
    """The same by STACK_GLOBAL (protocol 4)."""
    module, attribute = name.split(" ")
    return short(module) + short(attribute) + b"\x93"


def call(name, *arguments, name_as=glob):
    return name_as(name) + b"(" + b"".join(arguments) + b"tR"


def integer(n):
    raw = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def bytes_(raw):
    return b"B" + struct.pack("<I", len(raw)) + raw


def items(**values):
    return b"}(" + b"".join(text(k) + v for k, v in values.items()) + b"u"


def p2(body):
    return b"\x80\x02" + body + b"."


def p4(body):
    return b"\x80\x04" + body + b"."


def persistent(class_name="EDMPrecond", state=b"}", **fields):
    """A persistent object; fields replace those of the record, None removes one."""
    record = {
        "type": text("class"),
        "version": b"K\x06",
        "module_src": text("# nothing"),
        "class_name": text(class_name),
        "state": state,
    }
    record = {k: v for k, v in {**record, **fields}.items() if v is not None}
    return glob("torch_utils.persistence _reconstruct_persistent_obj") + items(**record) + b"\x85R"


def module_state(**parts):
    return items(**{"_parameters": b"}", "_buffers": b"}", "_modules": b"}", **parts})


def legacy(body, keys=(), data=b""):
    """A legacy torch.save stream around a protocol-2 pickle."""
    system = items(protocol_version=integer(1001), little_endian=b"\x88", type_sizes=b"}")
    listed = b"](" + b"".join(text(k) for k in keys) + b"e"
    return p2(integer(MAGIC)) + p2(integer(1001)) + p2(system) + body + p2(listed) + data


def storage_id(count, key="0", kind="torch FloatStorage", view=b""):
    return b"(" + text("storage") + glob(kind) + text(key) + text("cpu") + integer(count) + view + b"tQ"


def storage_bytes(count=4, declared=None, **options):
    """An embedded storage of EDM-style files."""
    declared = count if declared is None else declared
    content = struct.pack("<q", declared) + b"\0" * (4 * count)
    return legacy(p2(storage_id(declared, view=b"N", **options)), ["0"], content)


def tensor(storage, offset=0, size=(4,), stride=(1,), name="torch._utils _rebuild_tensor_v2"):
    shape = [b"(" + b"".join(integer(n) for n in t) + b"t" for t in (size, stride)]
    return call(name, storage, integer(offset), *shape, b"\x89", call("collections OrderedDict"))


def nested(levels):
    return b"N" + b"\x85" * levels


def laughs(levels=60):
    """Lists of ten references to the list before: 10^levels items when walked."""
    body = b"](" + b"K\x00" * 10 + b"eq\x00"
    for i in range(1, levels):
        body = b"](" + body + (b"h" + bytes([i - 1])) * 9 + b"eq" + bytes([i])
    return body
