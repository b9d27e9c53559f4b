"""Interpreter of the pickle opcodes that describe data; every other opcode, and every name not listed, is refused.

Python's own unpickler imports modules and calls what the file names. This one cannot: it has no import, and a name in
the file is a key of a `Vocabulary` of our own small functions that build inert values. It is written out instead of
derived from `pickle.Unpickler` because that class gives a file more than name look-up: BUILD writes attributes of
whatever lies on the stack, dotted names walk from an allowed module to `os.system`, INST and EXT find classes their own
way. Opcode meanings: `pickletools` of the standard library.

Work is bounded: operations, text, nesting, and the size of the result counted with repetitions (lists of lists that
share parts grow exponentially when walked). Raw bytes are slices of the file, never copies.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_OPERATIONS = 1_000_000
MAX_TEXT = 16 << 20
MAX_NAME = 200
MAX_KEY = 1024


@dataclass(frozen=True)
class Name:
    """A global that the vocabulary knows, as it lies on the stack: a name, nothing that could be called.

    Attributes:
        inert: what it makes is read past, see `Vocabulary.inert`.
    """

    text: str
    inert: bool = False


@dataclass(frozen=True, eq=False)
class Record:
    """What is left of an object: the name of its class and its attributes."""

    class_name: str
    state: dict[str, Any] = field(default_factory=dict)
    inert: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """The names a file may use.

    Attributes:
        calls: name -> function(arguments) for REDUCE.
        classes: name -> function() for NEWOBJ without arguments.
        values: names that stand for a value of ours (a dtype).
        build: function(value, state) for BUILD; raises ValueError where an object takes no state.
        persistent: function(id) for storages kept outside of the pickle; None: none may occur.
        met: collects the names that the file used.
        other_class: function(name) for names not listed: as an entry of `classes`, or None to refuse.
        inert: function(module, attribute): whether this class makes empty `Record`s, whatever it is given or set to.
        steps: opcode -> what it does to the machine, of opcodes that only some files need.
        max_text: bytes of the longest text.
    """

    calls: Mapping[str, Callable[[tuple], Any]] = field(default_factory=dict)
    classes: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    build: Callable[[Any, Any], None] | None = None
    persistent: Callable[[Any], Any] | None = None
    met: set[str] = field(default_factory=set)
    other_class: Callable[[str], Callable[[], Any] | None] = lambda name: None
    inert: Callable[[str, str], bool] = lambda module, attribute: False
    steps: Mapping[int, Callable[[_Machine], None]] = field(default_factory=dict)
    max_text: int = MAX_TEXT

    def maker(self, name: str) -> Callable[[], Any] | None:
        """What makes an object of the class `name`."""
        return self.classes.get(name) or self.other_class(name)


@dataclass
class Budget:
    """Work left for one file, shared by all streams inside of it."""

    operations: int = MAX_OPERATIONS

    def spend(self, count: int = 1) -> None:
        """Count operations, or items that one operation copies: it may be repeated on the same large value."""
        self.operations -= count
        if self.operations < 0:
            raise ValueError(f"the pickle takes more than the {MAX_OPERATIONS} operations allowed")


def shown(value: object) -> str:
    """A value of an untrusted file for a message: one line, printable, short, never walking into containers."""
    if isinstance(value, str):
        text = ascii(value[:100])[1:-1]
    elif isinstance(value, int | float | None) or (type(value) is tuple and all(type(n) is int for n in value[:9])):
        text = ascii(value[:9] if isinstance(value, tuple) else value)
    else:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


_MARK = object()  # lies on the stack below the items of a tuple, list or dict under construction


class _Machine:
    def __init__(self, view: memoryview, position: int, vocabulary: Vocabulary, budget: Budget) -> None:
        self.view = view
        self.position = position
        self.vocabulary = vocabulary
        self.budget = budget
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        start = self.position
        while True:
            at = self.position
            code = self.take(1)[0]
            if (at == start) != (code == 0x80):
                raise ValueError("the pickle does not begin with a protocol number of 2 to 5")
            if code == 0x2E:  # STOP
                value = self.pop()
                if self.stack:
                    raise ValueError("the pickle ends with values left over")
                return value
            step = _STEPS.get(code) or self.vocabulary.steps.get(code)
            if step is None or (code == 0x51 and self.vocabulary.persistent is None):
                info = pickletools.code2op.get(chr(code))
                name = info.name if info else f"0x{code:02x}"
                raise ValueError(f"the pickle uses the operation {name} at byte {at}, which data has no need of")
            self.budget.spend()
            step(self)

    # Reading: every length is compared with what is left of the file before anything is allocated.

    def take(self, size: int) -> memoryview:
        if size > len(self.view) - self.position:
            raise ValueError("the pickle is truncated or declares more bytes than the file has")
        self.position += size
        return self.view[self.position - size : self.position]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, size: int) -> str:
        if size > (most := self.vocabulary.max_text):
            raise ValueError(f"the pickle declares a text of {size} bytes, more than the {most} allowed")
        try:
            return str(self.take(size), "utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise ValueError("the pickle holds text that is not UTF-8") from None

    def line(self) -> str:
        raw = bytes(self.view[self.position : self.position + MAX_NAME])
        end = raw.find(b"\n")
        if end < 0:
            raise ValueError("the pickle holds a name that does not end")
        return self.text(end + 1)[:-1]

    # Stack.

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("the pickle takes a value from an empty stack")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        items = []
        while self.stack and self.stack[-1] is not _MARK:
            items.append(self.stack.pop())
        if not self.stack:
            raise ValueError("the pickle closes a group that it never opened")
        self.stack.pop()
        items.reverse()
        return items

    def top(self, kind: type, operation: str) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise ValueError(f"the pickle applies {operation} to something that is not a {kind.__name__}")
        return self.stack[-1]

    # Operations that need more than a line.

    def protocol(self) -> None:
        if not 2 <= self.take(1)[0] <= 5:
            raise ValueError("the pickle does not begin with a protocol number of 2 to 5")

    def frame(self) -> None:
        if self.number("<Q") > len(self.view) - self.position:
            raise ValueError("the pickle is truncated or declares more bytes than the file has")

    def integer(self) -> None:
        self.push(int.from_bytes(self.take(self.take(1)[0]), "little", signed=True))

    def remember(self, index: int) -> None:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("the pickle takes a value from an empty stack")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError(f"the pickle refers to its value number {index}, which it never stored")
        self.push(self.memo[index])

    def fills_inert(self) -> bool:
        """Whether what lies on top is read past, so that nothing is put into it."""
        return bool(self.stack) and isinstance(self.stack[-1], Record) and self.stack[-1].inert

    def set_items(self, items: list[Any]) -> None:
        if self.fills_inert():
            return
        target = self.top(dict, "SETITEMS")
        if len(items) % 2:
            raise ValueError("the pickle holds a dict with a key that has no value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key.text if isinstance(key, Name) and key.inert else plain_key(key)] = value

    def name(self, module: Any, attribute: Any) -> None:
        if not (isinstance(module, str) and isinstance(attribute, str)):
            raise ValueError("the pickle names a global by something that is not text")
        name = f"{module}.{attribute}"
        v = self.vocabulary
        if name in v.values:
            self.push(v.values[name])
        elif name in v.calls or v.maker(name) is not None:
            self.push(Name(name))
        elif v.inert(module, attribute):
            self.push(Name(name, inert=True))
        else:
            raise ValueError(f"it asks for {shown(name)}, which is not on the list of harmless names; nothing was run")
        v.met.add(name)

    def stack_name(self) -> None:
        attribute, module = self.pop(), self.pop()
        self.name(module, attribute)

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if isinstance(function, Name) and function.inert and type(arguments) is tuple:
            return self.push(Record(function.text, inert=True))
        known = self.vocabulary.calls.get(function.text) if isinstance(function, Name) else None
        if known is None or type(arguments) is not tuple:
            raise ValueError(f"it calls {_describe(function)}, which is not on the list of harmless functions")
        return self.push(known(arguments))

    def new_object(self) -> None:
        arguments, cls = self.pop(), self.pop()
        if isinstance(cls, Name) and cls.inert and type(arguments) is tuple:
            return self.push(Record(cls.text, inert=True))
        known = self.vocabulary.maker(cls.text) if isinstance(cls, Name) else None
        if known is None or arguments != ():
            raise ValueError(f"it makes an object of {_describe(cls)}, which is not on the list of harmless classes")
        return self.push(known())

    def build(self) -> None:
        state = self.pop()
        value = self.pop()
        if isinstance(value, Record) and value.inert:
            return self.push(value)
        if self.vocabulary.build is None:
            raise ValueError(f"it sets the attributes of {_describe(value)}")
        self.vocabulary.build(value, state)
        return self.push(value)


def _describe(value: object) -> str:
    return shown(value.text) if isinstance(value, Name) else f"a {type(value).__name__}"


def plain_key(key: Any) -> Any:
    """Keys hash in constant time: a tuple of shared tuples would take exponential time."""
    if (isinstance(key, str) and len(key) <= MAX_KEY) or (isinstance(key, int) and abs(key) < 1 << 63):
        return key
    raise ValueError(f"a dict or set has the key {shown(key)}: only integers and text up to {MAX_KEY} characters")


_STEPS: dict[int, Callable[[_Machine], None]] = {
    ord(code): step
    for code, step in {
        "\x80": _Machine.protocol,
        "\x95": _Machine.frame,
        "(": lambda m: m.push(_MARK),
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "J": lambda m: m.push(m.number("<i")),
        "K": lambda m: m.push(m.number("<B")),
        "M": lambda m: m.push(m.number("<H")),
        "\x8a": _Machine.integer,
        "G": lambda m: m.push(m.number(">d")),
        "X": lambda m: m.push(m.text(m.number("<I"))),
        "\x8c": lambda m: m.push(m.text(m.number("<B"))),
        "\x8d": lambda m: m.push(m.text(m.number("<Q"))),
        "C": lambda m: m.push(m.take(m.number("<B"))),
        "B": lambda m: m.push(m.take(m.number("<I"))),
        "\x8e": lambda m: m.push(m.take(m.number("<Q"))),
        ")": lambda m: m.push(()),
        "\x85": lambda m: m.push((m.pop(),)),
        "\x86": lambda m: m.push((m.pop(), m.pop())[::-1]),
        "\x87": lambda m: m.push((m.pop(), m.pop(), m.pop())[::-1]),
        "t": lambda m: m.push(tuple(m.pop_to_mark())),
        "]": lambda m: m.push([]),
        "a": lambda m: _append(m, [m.pop()]),
        "e": lambda m: _append(m, m.pop_to_mark()),
        "}": lambda m: m.push({}),
        "s": lambda m: m.set_items([m.pop(), m.pop()][::-1]),
        "u": lambda m: m.set_items(m.pop_to_mark()),
        "\x8f": lambda m: m.push(set()),
        "\x90": lambda m: _add(m, m.pop_to_mark()),
        "q": lambda m: m.remember(m.number("<B")),
        "r": lambda m: m.remember(m.number("<I")),
        "\x94": lambda m: m.remember(len(m.memo)),
        "h": lambda m: m.recall(m.number("<B")),
        "j": lambda m: m.recall(m.number("<I")),
        "c": lambda m: m.name(m.line(), m.line()),
        "\x93": _Machine.stack_name,
        "R": _Machine.reduce,
        "\x81": _Machine.new_object,
        "b": _Machine.build,
        "Q": lambda m: m.push(m.vocabulary.persistent(m.pop())),
    }.items()
}


def _append(m: _Machine, items: list[Any]) -> None:
    if not m.fills_inert():
        m.top(list, "APPENDS").extend(items)


def _add(m: _Machine, items: list[Any]) -> None:
    if not m.fills_inert():
        m.top(set, "ADDITEMS").update(plain_key(item) for item in items)


def run(view: memoryview, position: int, vocabulary: Vocabulary, budget: Budget) -> tuple[Any, int]:
    """Interpret the pickle that begins at byte `position`; returns its value and the byte after its end.

    Raises:
        ValueError: an operation or a name that is not allowed (named in the message), a damaged stream, too much work.
    """
    machine = _Machine(view, position, vocabulary, budget)
    return machine.run(), machine.position
