"""Pickles in the shape of published files: stand-ins for the classes that the original programs pickle."""

import collections
import sys
import types

import pytest
import torch

import torch_utils


@pytest.fixture
def persistence(monkeypatch):
    return persistence_in(monkeypatch)


def persistence_in(monkeypatch):
    """Classes that pickle as the original ones do: a call of a function in a module of that name."""
    module = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the reader must not call this")

    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = _reconstruct_persistent_obj.__name__
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch_utils, "persistence", module, raising=False)

    class Persistent:
        def __init__(self, class_name, state, source="# source"):
            self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}

        def __reduce__(self):
            return _reconstruct_persistent_obj, (self.meta,)

    return Persistent


def module_dict(parameters=None, buffers=None, modules=None, **others):
    od = collections.OrderedDict
    return {
        "training": False,
        "_parameters": od(parameters or {}),
        "_buffers": od(buffers or {}),
        "_non_persistent_buffers_set": {"hidden"},
        "_backward_hooks": od(),
        "_modules": od(modules or {}),
        "_init_args": (),
        "_init_kwargs": {},
        **others,
    }


def persistent_tree(module, persistence, init_kwargs=(), **attributes):
    """A network of ours as EDM's writer would pickle it: a persistent object per module, containers as they are."""
    children = {k: m and persistent_tree(m, persistence) for k, m in module._modules.items()}
    if isinstance(module, torch.nn.ModuleDict):
        copy = torch.nn.ModuleDict()
        copy._modules.update(children)
        return copy
    state = module_dict(module._parameters, module._buffers, children, **attributes)
    state["_non_persistent_buffers_set"] = set(module._non_persistent_buffers_set)
    state["_init_kwargs"] = dict(init_kwargs)
    return persistence(type(module).__name__, state)


def live_class(monkeypatch, name, module="published.networks", base=torch.nn.Module):
    """A class that pickles by its name, from a module that exists only here."""
    parts = module.split(".")
    for package in (".".join(parts[:i]) for i in range(1, len(parts) + 1)):
        if package not in sys.modules:
            monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    home = sys.modules[module]
    if not hasattr(home, name):
        setattr(home, name, type(name, (base,), {"__module__": module}))
    return getattr(home, name)


def live_tree(module, monkeypatch, rename=None):
    """A network of ours as plain pickle writes it: objects of classes that are found by name."""
    rename = rename or {}
    if type(module).__module__.startswith("torch.nn."):
        copy = type(module)()
    else:
        copy = live_class(monkeypatch, rename.get(type(module).__name__, type(module).__name__))()
    copy._parameters.update(module._parameters)
    copy._buffers.update(module._buffers)
    copy._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
    copy._modules.update({k: m and live_tree(m, monkeypatch, rename) for k, m in module._modules.items()})
    return copy
