"""Hostile pickle streams. BODIES: name -> (bytes, text that the refusal must contain)."""

import struct

from hostile.assemble import (
    CODE,
    COMMAND,
    MARKER,
    bytes_,
    call,
    glob,
    integer,
    items,
    laughs,
    legacy,
    module_state,
    nested,
    p2,
    p4,
    persistent,
    stack_global,
    storage_bytes,
    storage_id,
    tensor,
    text,
)
from hostile.live_objects import LIVE, generators

# Streams that name something to run: the refusal must name it too.

_ECHO = {
    "posix system": [text(COMMAND)],
    "nt system": [text(COMMAND)],
    "os system": [text(COMMAND)],
    "os popen": [text(COMMAND)],
    "os execvp": [text("touch"), b"](" + text("touch") + text(MARKER) + b"e"],
    "subprocess Popen": [b"](" + text("touch") + text(MARKER) + b"e"],
    "subprocess check_output": [b"](" + text("touch") + text(MARKER) + b"e"],
    "builtins eval": [text(CODE)],
    "builtins exec": [text(CODE)],
    "__builtin__ eval": [text(CODE)],
    "builtins compile": [text(CODE), text("x"), text("exec")],
    "builtins __import__": [text("antigravity")],
    "builtins open": [text(MARKER), text("w")],
    "builtins getattr": [glob("collections OrderedDict"), text("__init__")],
    "builtins map": [glob("collections OrderedDict"), b"]"],
    "importlib import_module": [text("antigravity")],
    "runpy _run_code": [text(CODE), b"}"],
    "runpy run_path": [text(MARKER)],
    "pip main": [b"]"],
    "code InteractiveInterpreter.runcode": [text(CODE)],
    "operator attrgetter": [text("system")],
    "operator methodcaller": [text("system"), text(COMMAND)],
    "functools partial": [glob("collections OrderedDict")],
    "functools reduce": [glob("collections OrderedDict"), b"]"],
    "itertools starmap": [glob("collections OrderedDict"), b"]"],
    "torch load": [text(MARKER)],
    "torch.serialization load": [text(MARKER)],
    "torch.hub load": [text("x"), text("y")],
    "torch.jit load": [text(MARKER)],
    "torch.ops.load_library x": [],
    "torch.serialization os.system": [text(COMMAND)],
    "torch._utils _import_dotted_name": [text("os.system")],
    "torch._utils _rebuild_sparse_tensor": [],
    "torch._utils _rebuild_qtensor": [],
    "torch._utils _rebuild_nested_tensor": [],
    "torch._utils _rebuild_meta_tensor_no_storage": [],
    "torch._utils _rebuild_wrapper_subclass": [],
    "torch._tensor _rebuild_from_type_v2": [glob("collections OrderedDict"), b"N", b")", b"}"],
    "torch.storage _load_from_bytes.__globals__": [],
    "torch.storage TypedStorage": [],
    "numpy load": [text(MARKER)],
    "numpy.f2py.capi_maps eval": [text(CODE)],
    "numpy.core.multiarray _reconstruct": [],
    "numpy ndarray": [b"K\x01\x85"],
    "pickle loads": [text("x")],
    "_pickle Unpickler": [],
    "dill loads": [text("x")],
    "cloudpickle loads": [text("x")],
    "joblib load": [text(MARKER)],
    "copyreg _reconstructor": [glob("collections OrderedDict"), b"N", b"N"],
    "ctypes CDLL": [text("libc.so.6")],
    "socket create_connection": [],
    "webbrowser open": [text("http://localhost")],
    "this s": [],
    "training.networks EDMPrecond": [],
    "torch_utils.persistence persistent_class": [],
    "torch_utils.checkpoint load": [text(MARKER)],
}

BODIES = {name: (p2(call(name, *arguments)), name.replace(" ", ".")) for name, arguments in _ECHO.items()}
BODIES |= {
    f"protocol 4 {name}": (p4(call(name, *_ECHO[name], name_as=stack_global)), name.replace(" ", "."))
    for name in ("posix system", "os system", "subprocess Popen", "builtins exec", "torch.serialization os.system")
}

_DEEP = 10_000
BODIES |= {
    # Opcodes that find or set something by themselves.
    "INST": (p2(b"(" + text(COMMAND) + b"ios\nsystem\n"), "INST"),
    "OBJ": (p2(b"(" + glob("collections OrderedDict") + text(COMMAND) + b"o"), "OBJ"),
    "OBJ os.system": (p2(b"(" + glob("os system") + text(COMMAND) + b"o"), "os.system"),
    "NEWOBJ real class": (p2(glob("torch.nn.modules.linear Bilinear") + b"K\x01K\x01\x86\x81"), "Bilinear"),
    "NEWOBJ arguments": (p2(glob("torch.nn.modules.linear Linear") + b"K\x01K\x01\x86\x81"), "Linear"),
    "NEWOBJ function": (p2(glob("torch._utils _rebuild_parameter") + b")\x81"), "_rebuild_parameter"),
    "NEWOBJ_EX": (p4(stack_global("tempfile TemporaryFile") + b")}\x92"), "tempfile.TemporaryFile"),
    "NEWOBJ_EX known": (p4(stack_global("torch.nn.modules.container ModuleDict") + b")}\x92"), "NEWOBJ_EX"),
    "EXT1": (p2(b"\x82\x01"), "EXT1"),
    "EXT2": (p2(b"\x83\x01\x00"), "EXT2"),
    "EXT4": (p2(b"\x84\x01\x00\x00\x00"), "EXT4"),
    "NEXT_BUFFER": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "READONLY_BUFFER": (b"\x80\x05N\x98.", "READONLY_BUFFER"),
    "BYTEARRAY8": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", "BYTEARRAY8"),
    "PERSID": (p2(b"Pos.system\n"), "PERSID"),
    "text integer": (p2(b"I" + b"9" * 100_000 + b"\n"), "INT"),
    "text string": (p2(b"S'" + CODE.encode() + b"'\n"), "STRING"),
    "unknown opcode": (p2(b"\xff"), "0xff"),
    "BUILD on a function": (p2(glob("collections OrderedDict") + items(__defaults__=b")") + b"b"), "attributes"),
    "BUILD slot state on a function": (
        p2(glob("torch._utils _rebuild_parameter") + b"N" + items(__code__=b"N") + b"\x86b"),
        "attributes",
    ),
    "BUILD on a class": (p2(glob("torch.nn.modules.linear Linear") + items(forward=b"N") + b"b"), "attributes"),
    "BUILD on a dict": (p2(b"}" + items(__class__=glob("collections OrderedDict")) + b"b"), "attributes"),
    "BUILD slot state on an object": (
        p2(glob("torch.nn.modules.linear Linear") + b")\x81N" + items(__class__=b"N") + b"\x86b"),
        "attributes",
    ),
    "REDUCE of a list": (p2(b"])R"), "calls"),
    "REDUCE of a text": (p2(text("os.system") + text(COMMAND) + b"\x85R"), "calls"),
    "REDUCE without a tuple": (p2(glob("collections OrderedDict") + b"]R"), "calls"),
    "STACK_GLOBAL of numbers": (p4(b"K\x01K\x02\x93"), "not text"),
    # Memo and stack.
    "payload by memo": (p2(glob("os system") + b"q\x000h\x00" + text(COMMAND) + b"\x85R"), "os.system"),
    "GET of an unset index": (p2(b"j\xff\xff\xff\x7f"), "never stored"),
    "PUT without value": (p2(b"r\xff\xff\xff\x7fN"), "empty stack"),
    "pop below mark": (p2(b"N(\x85"), "empty stack"),
    "empty stack": (p2(b""), "empty stack"),
    "values left over": (p2(b"NN"), "left over"),
    "unopened group": (p2(b"Nt"), "never opened"),
    "odd dict": (p2(b"}(Nu"), "no value"),
    "append to a number": (p2(b"K\x01K\x02a"), "APPENDS"),
    "SETITEMS on a tensor list": (p2(b"](" + text("a") + b"Nu"), "SETITEMS"),
    "cyclic dict": (p2(b"}q\x00" + text("self") + b"h\x00s"), "itself"),
    "cyclic list": (p2(b"]q\x00h\x00a"), "itself"),
    "key that hashes for ever": (
        p2(b"}" + b"K\x00q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(200)) + b"Ns"),
        "key",
    ),
    "huge integer key": (p2(b"}" + integer(1 << 1000) + b"Ns"), "key"),
    "set of tuples": (p4(b"\x8f(N\x85\x90"), "key"),
    # Lengths that lie, nesting, repetition.
    "text length": (p2(b"X\xf0\xff\xff\xff" + b"abc"), "text of 4294967280 bytes"),
    "text length inside limits": (p2(b"X\xff\xff\x7f\x00" + b"abc"), "more bytes than the file has"),
    "BINUNICODE8": (p4(b"\x8d" + struct.pack("<Q", 1 << 62)), "text of"),
    "BINBYTES": (p4(b"B\xff\xff\xff\x7f"), "more bytes than the file has"),
    "BINBYTES8": (p4(b"\x8e" + struct.pack("<Q", 1 << 62)), "more bytes than the file has"),
    "LONG4": (p2(b"\x8b" + struct.pack("<i", 10**9)), "LONG4"),
    "FRAME": (p4(b"\x95" + struct.pack("<Q", 1 << 62) + b"N"), "more bytes than the file has"),
    "not UTF-8": (p2(b"X\x02\x00\x00\x00\xff\xfe"), "UTF-8"),
    "name without end": (p2(b"c" + b"a" * 100_000), "does not end"),
    "protocol 0": (b"N.", "protocol"),
    "protocol 77": (b"\x80\x4dN.", "protocol"),
    "second protocol": (p2(b"\x80\x02N"), "protocol"),
    "deep tuples": (p2(nested(_DEEP)), "nested deeper"),
    "deep lists": (p2(b"]" * _DEEP + b"a" * (_DEEP - 1)), "nested deeper"),
    "deep dicts": (p2((b"}" + text("a")) * _DEEP + b"N" + b"s" * _DEEP), "nested deeper"),
    "many marks": (p2(b"(" * 1_200_000), "operations allowed"),
    "many dicts": (p2(b"](" + b"}" * 1_200_000 + b"e"), "operations allowed"),
    "billion laughs": (p2(laughs()), "more than"),
    "million laughs": (p2(laughs(7)), "more than"),
    "wide repetition": (p2(b"](](" + b"N" * 3000 + b"eq\x00" + b"h\x00" * 3000 + b"e"), "more than"),
    # Functions on the list, with arguments they were not made for.
    "OrderedDict of text": (p2(call("collections OrderedDict", text("ab"))), "ordered dict"),
    "OrderedDict of slow keys": (p2(call("collections OrderedDict", b"](N\x85N\x86e")), "key"),
    "parameter of text": (p2(call("torch._utils _rebuild_parameter", text("a"), b"\x89", b"}")), "parameter"),
    "tensor of text": (p2(tensor(text("a"))), "tensor"),
}

_EDM_ONLY = {
    # Shapes that concern names only EDM-style files may use.
    "record function": (p2(persistent(type=text("function"))), "function"),
    "record version 7": (p2(persistent(version=b"K\x07")), "version 7"),
    "record version text": (p2(persistent(version=text("6"))), "version"),
    "record version bool": (p2(persistent(version=b"\x88")), "version True"),
    "record without state": (p2(persistent(state=None)), "fields"),
    "record without source": (p2(persistent(module_src=None)), "fields"),
    "record with extra field": (p2(persistent(init=text(CODE))), "fields"),
    "record of a list": (p2(glob("torch_utils.persistence _reconstruct_persistent_obj") + b"]\x85R"), "fields"),
    "record state list": (p2(persistent(state=b"]")), "state"),
    "record class dotted": (p2(persistent(class_name="os.system")), "os.system"),
    "record class 1 MB": (p2(persistent(class_name="x" * 1_000_000)), "class name"),
    "record attribute number": (p2(persistent(state=b"}K\x01Ns")), "state"),
    "numpy object dtype": (p2(call("numpy dtype", text("O8"), b"K\x00K\x01")), "O8"),
    "numpy structured dtype": (p2(call("numpy dtype", text("V1000000000"))), "V1000000000"),
    "numpy scalar of wrong size": (
        p2(call("numpy.core.multiarray scalar", call("numpy dtype", text("f8")), bytes_(b"\0" * 4))),
        "8 bytes",
    ),
    "numpy scalar without dtype": (p2(call("numpy._core.multiarray scalar", text("O"), bytes_(b"x"))), "numpy number"),
    "numpy big-endian": (p2(call("numpy dtype", text("f8")) + b"(K\x03" + text(">") + b"tb"), "byte order"),
    "codec": (p2(call("_codecs encode", text("x"), text("rot13"))), "latin1"),
    "codec bytes": (p2(call("_codecs encode", bytes_(b"x"), text("latin1"))), "latin1"),
    "codec range": (p2(call("_codecs encode", text("\u0416"), text("latin1"))), "latin1"),
    "set of text": (p2(call("builtins set", text("ab"))), "set"),
    "size of text": (p2(call("torch Size", text("ab"))), "torch.Size"),
    "storage with os.system inside": (
        p2(call("torch.storage _load_from_bytes", bytes_(p2(call("os system", text(COMMAND)))))),
        "os.system",
    ),
    "storage with os.system as object": (
        p2(call("torch.storage _load_from_bytes", bytes_(legacy(p2(call("posix system", text(COMMAND))))))),
        "posix.system",
    ),
    "storage inside storage": (
        p2(
            call(
                "torch.storage _load_from_bytes",
                bytes_(legacy(p2(call("torch.storage _load_from_bytes", bytes_(storage_bytes()))))),
            )
        ),
        "_load_from_bytes",
    ),
    "storage of text": (p2(call("torch.storage _load_from_bytes", text("x"))), "bytes"),
    "storage of latin1": (
        p2(call("torch.storage _load_from_bytes", call("_codecs encode", text("x"), text("latin1")))),
        "protocol",
    ),
    "storage zip": (p2(call("torch.storage _load_from_bytes", bytes_(b"PK\x03\x04" + b"\0" * 40))), "protocol"),
    "storage is a number": (p2(call("torch.storage _load_from_bytes", bytes_(legacy(p2(b"K\x01"))))), "one storage"),
    "storage declares 2^40": (
        p2(call("torch.storage _load_from_bytes", bytes_(storage_bytes(declared=1 << 40)))),
        "more than the file has",
    ),
    "storage declares 2^63": (
        p2(call("torch.storage _load_from_bytes", bytes_(legacy(p2(storage_id(1 << 63, view=b"N")), ["0"])))),
        "not a storage",
    ),
    "storage negative": (
        p2(call("torch.storage _load_from_bytes", bytes_(legacy(p2(storage_id(-4, view=b"N")), ["0"])))),
        "not a storage",
    ),
    "storage truncated": (
        p2(call("torch.storage _load_from_bytes", bytes_(storage_bytes()[:-4]))),
        "truncated",
    ),
    "storage trailing bytes": (p2(call("torch.storage _load_from_bytes", bytes_(storage_bytes() + b"x"))), "follow"),
    "storage of unknown type": (
        p2(call("torch.storage _load_from_bytes", bytes_(storage_bytes(kind="torch QInt8Storage")))),
        "QInt8Storage",
    ),
    "storage view": (
        p2(
            call(
                "torch.storage _load_from_bytes",
                bytes_(legacy(p2(storage_id(4, view=text("view"))), ["0"], struct.pack("<q", 4) + b"\0" * 16)),
            )
        ),
        "not a storage",
    ),
    "storage repeated by memo": (
        p2(
            b"]("
            + glob("torch.storage _load_from_bytes")
            + b"q\x00"
            + bytes_(storage_bytes(25_000))
            + b"q\x01\x85R"
            + b"h\x00h\x01\x85R" * 200
            + b"e"
        ),
        "more bytes than the file",
    ),
}


def embedded_tensor(**options):
    return tensor(call("torch.storage _load_from_bytes", bytes_(storage_bytes())), **options)


TENSORS = {
    "tensor larger than storage": ({"size": (5,)}, "does not fit"),
    "tensor beyond storage": ({"size": (4,), "offset": 1}, "does not fit"),
    "tensor stride beyond storage": ({"size": (2,), "stride": (4,)}, "does not fit"),
    "tensor negative offset": ({"offset": -1}, "impossible"),
    "tensor negative stride": ({"stride": (-1,), "offset": 3}, "impossible"),
    "tensor negative size": ({"size": (-4,)}, "impossible"),
    "tensor stride 0": ({"size": (10**6, 10**5), "stride": (0, 0)}, "does not fit"),
    "tensor 2^63": ({"size": (1 << 63,)}, "impossible"),
    "tensor product 2^64": ({"size": (1 << 32, 1 << 32)}, "impossible"),  # one stride for two sizes
    "tensor product overflow": ({"size": (1 << 32, 1 << 32), "stride": (0, 0)}, "does not fit"),
    "tensor of rank 100": ({"size": (1,) * 100, "stride": (1,) * 100}, "impossible"),
    "tensor empty with huge size": ({"size": (0, 1 << 62), "stride": (1, 1)}, "impossible"),
}
_EDM_ONLY |= {name: (p2(embedded_tensor(**options)), reason) for name, (options, reason) in TENSORS.items()}
_EDM_ONLY |= {
    "bytes repeated by memo": (
        p2(b"](" + glob("_codecs encode") + text("x" * 100_000) + text("latin1") + b"\x86q\x00R"
           + (glob("_codecs encode") + b"h\x00R") * 100 + b"e"),
        "more bytes than the file",
    ),
    "ordered dict repeated by memo": (
        p2(b"](" + glob("collections OrderedDict") + b"q\x00](" + b"".join(integer(i) + b"N\x86" for i in range(3000))
           + b"e\x85q\x01R" + b"h\x00h\x01R" * 1000 + b"e"),
        "operations",
    ),
    "set repeated by memo": (
        p2(b"](" + glob("__builtin__ set") + b"q\x00](" + b"".join(integer(i) for i in range(3000)) + b"e\x85q\x01R"
           + b"h\x00h\x01R" * 1000 + b"e"),
        "operations",
    ),
    "object state repeated by memo": (
        p2(b"](" + glob("torch.nn.modules.linear Linear") + b"q\x00}("
           + b"".join(integer(i) + b"N" for i in range(3000)) + b"uq\x01" + b"h\x00)\x81h\x01b" * 1000 + b"e"),
        "operations",
    ),
}  # fmt: skip
BODIES |= _EDM_ONLY | LIVE


def networks():
    """EDM-style files whose records are well-formed and whose networks are not."""
    good = call("torch._utils _rebuild_parameter", embedded_tensor(), b"\x89", call("collections OrderedDict"))
    child = persistent("Linear", module_state(_parameters=items(weight=good)))
    states = {
        "parameters list": module_state(_parameters=b"]"),
        "parameter is text": module_state(_parameters=items(weight=text("x"))),
        "buffer is a record": module_state(_buffers=items(weight=child)),
        "module is a tensor": module_state(_modules=items(model=good)),
        "module name dotted": module_state(_modules=items(**{"a.b": child})),
        "module name empty": module_state(_modules=items(**{"": child})),
        "module name 1 MB": module_state(_modules=items(**{"m" * 1_000_000: child})),
        "parameter name path": module_state(_parameters=items(**{"../x": good})),
        "arguments list": module_state(_init_args=b"]"),
        "arguments too many": module_state(_init_args=b"(" + b"K\x01" * 9 + b"t"),
        "keyword arguments text": module_state(_init_kwargs=text("x")),
        "no tensors": module_state(_init_kwargs=items(img_resolution=b"K\x08", img_channels=b"K\x03")),
        "unknown argument": module_state(
            _init_kwargs=items(img_resolution=b"K\x08", img_channels=b"K\x03", command=text(COMMAND))
        ),
        "huge channels": module_state(
            _init_kwargs=items(
                img_resolution=b"K\x08",
                img_channels=b"K\x03",
                model_type=text("SongUNet"),
                model_channels=integer(1 << 40),
            )
        ),
        "a million channels": module_state(
            _init_kwargs=items(
                img_resolution=b"K\x08",
                img_channels=b"K\x03",
                model_type=text("SongUNet"),
                model_channels=integer(1 << 20),
            )
        ),
        "a million blocks": module_state(
            _init_kwargs=items(
                img_resolution=b"K\x08", img_channels=b"K\x03", model_type=text("SongUNet"), num_blocks=integer(1 << 20)
            )
        ),
        "text for a number": module_state(_init_kwargs=items(img_resolution=text("eight"), img_channels=b"K\x03")),
    }
    result = {name: p2(items(ema=persistent(state=state))) for name, state in states.items()}
    result |= generators()
    result["unknown class"] = p2(items(ema=persistent("os")))
    result["dunder class"] = p2(items(ema=persistent("__class__")))
    result["no ema"] = p2(items(net=child))
    result["ema is text"] = p2(items(ema=text("x")))
    deep = persistent(state=module_state())
    for _ in range(200):
        deep = persistent("Linear", module_state(_modules=items(m=deep)))
    result["deep modules"] = p2(items(ema=deep))
    shared = persistent("Linear", module_state(_parameters=items(weight=good))) + b"q\x00"
    for level in range(1, 8):  # 8^7 modules once walked
        references = [shared, *[b"h" + bytes([level - 1])] * 7]
        children = items(**{f"m{i}": reference for i, reference in enumerate(references)})
        shared = persistent("Linear", module_state(_modules=children)) + b"q" + bytes([level])
    result["shared modules"] = p2(items(ema=shared))
    return result
