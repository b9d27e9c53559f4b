"""Attacks in files of live objects (MAC): classes by name become Records, by value they would have to be run."""

from hostile.assemble import CODE, COMMAND, call, glob, items, module_state, p2, p4, persistent, stack_global, text


def _class_by_value(bases=b")"):
    """What dill writes for a class of `__main__`."""
    kind = call("dill._dill _load_type", text("type"))
    return call("dill._dill _create_type", kind, text("Generator"), bases, items(__init__=text(CODE)))


LIVE = {
    "dill class by value": (p2(_class_by_value() + b")\x81}b"), "dill._dill._create_type"),
    "dill type": (p2(call("dill._dill _create_type", text("Generator"), b")", b"}")), "dill._dill._create_type"),
    "dill type as object": (p2(glob("dill._dill _create_type") + b")\x81"), "dill._dill._create_type"),
    "dill function": (p2(call("dill._dill _create_function", text(CODE), b"}")), "dill._dill._create_function"),
    "dill code": (p2(call("dill._dill _create_code", text(CODE))), "dill._dill._create_code"),
    "dill module": (p2(call("dill._dill _import_module", text("antigravity"))), "dill._dill._import_module"),
    "dill attribute": (p2(call("dill._dill _get_attr", text("os"), text("system"))), "dill._dill._get_attr"),
    "dill cell": (p2(call("dill._dill _create_cell", text(CODE))), "dill._dill._create_cell"),
    "dill Generator": (p2(glob("dill Generator") + b")\x81"), "dill.Generator"),
    "cloudpickle class": (
        p2(call("cloudpickle.cloudpickle _make_skeleton_class", text("Generator"))),
        "_make_skeleton_class",
    ),
    "Generator of Python": (p2(glob("os Generator") + b")\x81"), "os.Generator"),
    "Generator of numpy": (p2(glob("numpy.random Generator") + b")\x81"), "numpy.random.Generator"),
    "Generator of torch": (p2(glob("torch._C Generator") + b")\x81"), "torch._C.Generator"),
    "Generator of Python 2": (p2(glob("__builtin__ Generator") + b")\x81"), "__builtin__.Generator"),
    "Generator by dots": (p4(stack_global("subprocess Popen.Generator") + b")\x81"), "subprocess.Popen.Generator"),
    "Generator of no module": (p4(stack_global(" Generator") + b")\x81"), "Generator"),
    "Generator of a path": (p4(stack_global("../evil Generator") + b")\x81"), "evil.Generator"),
    "Generator called": (p2(glob("project.networks Generator") + text(CODE) + b"\x85R"), "project.networks.Generator"),
    "Generator with arguments": (p2(glob("project.networks Generator") + text(CODE) + b"\x85\x81"), "Generator"),
    "Generator with slot state": (
        p2(glob("project.networks Generator") + b")\x81N" + items(__class__=b"N") + b"\x86b"),
        "attributes",
    ),
    "attributes of the class Generator": (
        p2(glob("project.networks Generator") + items(forward=b"N") + b"b"),
        "attributes",
    ),
    "metaclass of Generator": (p2(glob("project.networks Generator.__class__") + b")\x81"), "Generator.__class__"),
    "unknown class of the project": (p2(glob("project.networks Sampler") + b")\x81"), "project.networks.Sampler"),
    "generator with a hook": (
        p2(
            glob("project.networks Generator")
            + b")\x81"
            + module_state(_forward_hooks=items(a=call("functools partial", glob("os system"), text(COMMAND))))
            + b"b"
        ),
        "functools.partial",
    ),
}


def generators():
    """Files whose G_ema is no generator that could be sampled."""
    result = {}
    made = glob("project.networks Generator") + b")\x81"
    result["generator without parts"] = p2(items(G_ema=made + module_state() + b"b"))
    result["generator is another class"] = p2(items(G_ema=persistent("Sampler", module_state())))
    result["generator is text"] = p2(items(G_ema=text("x")))
    result["generator without coefficients"] = p2(
        items(G_ema=made + module_state(_modules=items(V=persistent(state=module_state()))) + b"b")
    )
    result["generator inside itself"] = p2(
        items(G_ema=made + b"q\x00" + module_state(_modules=items(V=b"h\x00", C=b"h\x00")) + b"b")
    )
    return result
