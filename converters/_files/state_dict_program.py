"""Interpret the pickle programs of state dicts, and no others.

The interpreter executes the instructions of pickle's protocol 2 that ``torch.save`` uses, creates
only the objects in `state_dict_objects`, and limits their memory. It refuses everything that
PyTorch refuses with ``weights_only=True``, and everything else that a state dict does not need.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from vbfmt.converters._files.state_dict_objects import (
    ARGUMENTS,
    CALLABLE,
    LARGEST,
    STORAGES,
    Ordered,
    Storage,
    StorageType,
)
from vbfmt.tensors import TORCH


def run(
    program: memoryview, start: int, memory: int, storages: dict[str, Storage], *, arity: int
) -> tuple[Any, int]:
    """Run a program. Return its result and the position after it.

    Args:
        program: bytes that contain the program.
        start: position of its first instruction.
        memory: largest total size in bytes of its objects.
        storages: storages by key. The program's storages are added to it.
        arity: number of items in a storage's description after ``"storage"``: 4 in an archive, 5
            before PyTorch 1.6 (the fifth item describes a view, and must be None).

    Raises:
        ValueError: the bytes are not the program of a state dict, or it needs too much memory.
    """
    machine = _Machine(program, start, memory, storages, arity)
    try:
        return machine.run()
    except (IndexError, struct.error):
        raise ValueError("the pickle is damaged") from None


class _Machine:
    def __init__(
        self,
        program: memoryview,
        start: int,
        memory: int,
        storages: dict[str, Storage],
        arity: int,
    ) -> None:
        self._program = program
        self._position = start
        self._memory = memory
        self._storages = storages
        self._arity = arity
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: list[Any] = []

    def run(self) -> tuple[Any, int]:
        program, instructions = self._program, _INSTRUCTIONS
        while True:
            code = program[self._position]
            self._position += 1
            if code == _STOP:
                return self._stack.pop(), self._position
            instruction = instructions.get(code)
            if instruction is None:
                raise ValueError(f"unsupported: pickle instruction {bytes([code])!r}")
            instruction(self)

    def _charge(self, size: int) -> None:
        self._memory -= size
        if self._memory < 0:
            raise ValueError("the pickle's objects would take too much memory")

    def push(self, value: Any, size: int) -> None:
        self._charge(size + 8)
        self._stack.append(value)

    def _take(self, size: int) -> memoryview:
        begin = self._position
        if size > len(self._program) - begin:
            raise ValueError("the pickle is truncated")
        self._position = begin + size
        return self._program[begin : begin + size]

    def _number(self, form: str, size: int) -> int:
        (value,) = struct.unpack(form, self._take(size))
        number: int = value
        return number

    def _line(self) -> str:
        begin = self._position
        ahead = bytes(self._program[begin : begin + 128])
        length = ahead.find(b"\n")
        if length < 0:
            raise ValueError("unsupported: a long name of a class")
        self._position = begin + length + 1
        return ahead[:length].decode()

    def proto(self) -> None:
        if self._number("<B", 1) != 2:
            raise ValueError("unsupported: a pickle protocol other than 2")

    def integer(self, form: str, size: int) -> None:
        self.push(self._number(form, size), 32)

    def long(self) -> None:
        size = self._number("<B", 1)
        self.push(int.from_bytes(self._take(size), "little", signed=True), 32 + size)

    def real(self) -> None:
        (value,) = struct.unpack(">d", self._take(8))
        self.push(value, 24)

    def text(self) -> None:
        size = self._number("<I", 4)
        data = self._take(size)
        self._charge(4 * size)  # Python stores a character beyond ASCII in up to four bytes
        text = str(data, "utf-8")
        if text.isascii():
            self._memory += 3 * size
        self.push(text, 56)

    def mark(self) -> None:
        self._charge(_MARK)
        self._below.append(self._stack)
        self._stack = []

    def since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        self._memory += _MARK
        return items

    def last(self, size: int) -> list[Any]:
        items = self._stack[-size:]
        if len(items) != size:
            raise IndexError
        del self._stack[-size:]
        return items

    def tuple_of(self, items: list[Any]) -> None:
        self.push(tuple(items), 64 + 8 * len(items))

    def extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise ValueError("the pickle appends to an object that is not a list")
        self._charge(16 * len(values))
        target.extend(values)

    def set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in (dict, Ordered) or len(items) % 2:
            raise ValueError("the pickle sets an item of an object that is not a dict")
        self._charge(80 * len(items))
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                raise ValueError(f"a key that is not a string: {type(key).__name__}")
            if key in target:
                raise ValueError(f"duplicate key {key[:80]!r}")
            target[key] = value

    def put(self, form: str, size: int) -> None:
        position = self._number(form, size)
        missing = position + 1 - len(self._memo)
        if missing > 0:
            self._charge(9 * missing)
            self._memo.extend([_NOTHING] * missing)
        self._memo[position] = self._stack[-1]

    def get(self, form: str, size: int) -> None:
        value = self._memo[self._number(form, size)]
        if value is _NOTHING:
            raise IndexError
        self.push(value, 0)

    def named(self) -> None:
        module, name = self._line(), self._line()
        if module == "torch" and name in STORAGES:
            self.push(StorageType(TORCH[STORAGES[name]]), 48)
        elif (module, name) in CALLABLE:
            self.push(CALLABLE[module, name], 0)
        else:
            raise ValueError(f"unsupported: {module[:40]}.{name[:40]}")

    def call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(arguments) is not tuple or function not in CALLABLE.values():
            raise ValueError("the pickle calls a function that state dicts do not use")
        least, most = ARGUMENTS[function]
        if not least <= len(arguments) <= most:
            raise ValueError("the pickle calls a function with the wrong number of arguments")
        self.push(function(*arguments), 120)

    def build(self) -> None:
        """Drop the attributes of an `OrderedDict` (``_metadata``), which are not needed."""
        state = self._stack.pop()
        if type(self._stack[-1]) is not Ordered or type(state) is not dict:
            raise ValueError("unsupported: attributes of an object")

    def stored(self) -> None:
        words = self._stack.pop()
        if type(words) is not tuple or len(words) != 1 + self._arity or words[0] != "storage":
            raise ValueError("the pickle refers to something other than a storage")
        kind, key, location, elements = words[1:5]
        known = type(kind) is StorageType and type(key) is str and type(location) is str
        if not known or type(elements) is not int or not 0 <= elements < LARGEST:
            raise ValueError("an invalid description of a storage")
        if words[5:] not in ((), (None,)):
            raise ValueError("unsupported: a view of a storage")
        storage = Storage(key, kind.dtype, elements)
        if self._storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {key[:40]!r} is described in two ways")
        self.push(self._storages[key], 160)


_NOTHING = object()
_MARK = 160
"""Memory in bytes of the stack that each mark creates."""
_STOP = ord(".")

_INSTRUCTIONS: dict[int, Callable[[_Machine], None]] = {
    ord(code): instruction
    for code, instruction in {
        "\x80": _Machine.proto,
        "N": lambda machine: machine.push(None, 0),
        "\x88": lambda machine: machine.push(True, 0),
        "\x89": lambda machine: machine.push(False, 0),
        "J": lambda machine: machine.integer("<i", 4),
        "K": lambda machine: machine.integer("<B", 1),
        "M": lambda machine: machine.integer("<H", 2),
        "\x8a": _Machine.long,
        "G": _Machine.real,
        "X": _Machine.text,
        ")": lambda machine: machine.push((), 0),
        "]": lambda machine: machine.push([], 120),
        "}": lambda machine: machine.push({}, 240),
        "(": _Machine.mark,
        "t": lambda machine: machine.tuple_of(machine.since_mark()),
        "\x85": lambda machine: machine.tuple_of(machine.last(1)),
        "\x86": lambda machine: machine.tuple_of(machine.last(2)),
        "\x87": lambda machine: machine.tuple_of(machine.last(3)),
        "a": lambda machine: machine.extend(machine.last(1)),
        "e": lambda machine: machine.extend(machine.since_mark()),
        "s": lambda machine: machine.set_items(machine.last(2)),
        "u": lambda machine: machine.set_items(machine.since_mark()),
        "q": lambda machine: machine.put("<B", 1),
        "r": lambda machine: machine.put("<I", 4),
        "h": lambda machine: machine.get("<B", 1),
        "j": lambda machine: machine.get("<I", 4),
        "c": _Machine.named,
        "R": _Machine.call,
        "b": _Machine.build,
        "Q": _Machine.stored,
    }.items()
}
"""Opcode → what the machine does. Python's ``pickletools`` documents each opcode."""
